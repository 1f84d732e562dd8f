"""Whether the extra is installed, and that it stays offline and quiet."""

from __future__ import annotations

import os
from importlib.util import find_spec

from cfgen.errors import ToolError

EXTRA = ("diffusers", "transformers", "peft")


def require_extra() -> None:
    """To be called before any of the extra is imported.

    Raises ToolError where it is not installed.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ToolError(
            "Stable Diffusion",
            f"{' and '.join(missing)} not installed",
            "the extra cfgen[sd]",
            "pip install 'cfgen[sd]'",
        )
    # Models come from a folder, never from the net.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["DIFFUSERS_VERBOSITY"] = "error"
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
