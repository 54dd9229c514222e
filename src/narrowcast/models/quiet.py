"""Keep `transformers` from talking: its errors are turned into ours, its advice is not the user's concern."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, log lines below ERROR and progress bars of `transformers` and of what it imports."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers.utils import logging as library

            bars = library.is_progress_bar_enabled()
            library.disable_progress_bar()
            try:
                yield
            finally:
                if bars:
                    library.enable_progress_bar()
    finally:
        logging.disable(disabled)
