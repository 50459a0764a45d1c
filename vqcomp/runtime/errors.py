"""The tree of errors. Everything vqcomp raises on purpose is a `VqcompError`.

    VqcompError                 exit code 1
    ├── InputError              data or options that cannot be used as they are
    ├── ModelError              a model file that cannot be used, or not with these tokens
    ├── DependencyError         a package is missing, or too old
    ├── PlatformError           this machine breaks a rule of exact arithmetic
    └── ArchiveError            exit code 3: the archive is not what it should be
        ├── FormatError         not a vqcomp archive, or a version that is not known
        ├── UnsafeNameError     a segment's name leaves the output folder
        └── DamageError         a checksum does not match; names the segment where there is one

A message says what was expected, what was found, and what to do.
"""


class VqcompError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the command's exit status."""

    exit_code = 1


class InputError(VqcompError):
    """Tokens, files or options that cannot be used as they are."""


class ModelError(VqcompError):
    """A model file that cannot be read, or that does not fit the tokens."""


class DependencyError(VqcompError):
    """A needed package is missing."""


class PlatformError(VqcompError):
    """The self-test found arithmetic that is not exact on this machine."""


class ArchiveError(VqcompError):
    """The archive is not what it should be."""

    exit_code = 3


class FormatError(ArchiveError):
    """Not a vqcomp archive, or one of an unknown version, or sizes that do not add up."""


class UnsafeNameError(ArchiveError):
    """A segment's name would leave the output folder."""


class DamageError(ArchiveError):
    """A checksum does not match: bits have changed since the archive was written."""
