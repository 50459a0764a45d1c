"""All kinds of cases, and how the time is shared among them."""

from __future__ import annotations

import archive_cases

KINDS = {**archive_cases.KINDS}
SHARES = {kind: 1.0 for kind in KINDS}
LIMITS = {kind: 60.0 for kind in KINDS}
