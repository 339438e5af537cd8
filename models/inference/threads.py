"""How many threads torch takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch within, as many as before after it.

    Many small operations gain nothing by more: threads wait for each other after each of them, and
    where another program is on one of the cores that takes many times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
