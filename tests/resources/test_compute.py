"""Out of memory halves the batch and goes on, down to one item, which then fails alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from resources.errors import FlexyError
from resources.models.compute import HalvingBatches, is_out_of_memory

EXABYTE = 10**18


class Model:
    """Doubles numbers; more than `room` at a time, or one of `giants`, takes more memory than there is."""

    def __init__(self, room: int, giants: Sequence[int] = ()) -> None:
        self.room, self.giants = room, giants
        self.calls: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(len(items))
        if len(items) > self.room or set(items) & set(self.giants):
            torch.empty(EXABYTE, dtype=torch.uint8)
        return [2 * item for item in items]


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so() -> None:
    model, halving = Model(room=3), HalvingBatches(16)
    assert halving(model, range(20)) == [2 * item for item in range(20)]
    assert halving(model, range(4)) == [0, 2, 4, 6]
    assert model.calls == [16, 8, 4, *[2] * 10, 2, 2]


def test_one_item_that_does_not_fit_fails_alone_and_the_others_are_done() -> None:
    model = Model(room=8, giants=[5])
    results = HalvingBatches(8)(model, range(12))
    assert [r for r in results if not isinstance(r, FlexyError)] == [2 * i for i in range(12) if i != 5]
    failed = results[5]
    assert isinstance(failed, FlexyError)
    assert "out of memory" in str(failed)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(items: Sequence[int]) -> list[int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        HalvingBatches(4)(broken, [1, 2])


def test_what_libraries_say_of_a_lack_of_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(EXABYTE, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(ValueError("out of memory"))
