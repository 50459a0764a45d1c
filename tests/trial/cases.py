"""All kinds of cases, and how the time is shared among them."""

from __future__ import annotations

import archive_cases
import network_cases
import process_cases
import shard_cases

KINDS = {**archive_cases.KINDS, **network_cases.KINDS, **shard_cases.KINDS, **process_cases.KINDS}
"""Name -> case(random, empty folder, specimens)."""
SHARES = {kind: 3.0 if kind in process_cases.KINDS else 1.0 for kind in KINDS}
"""Of the time."""
LIMIT = 60.0
"""Seconds for a case: all take a small part of it, even on a busy machine."""
