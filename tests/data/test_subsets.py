import pickle

import numpy as np
import pytest

from noise2map.data.subsets import Cropped, SkipUnreadable, Subset, evenly_spaced


class Five:
    """A dataset with names and colors."""

    id2label, palette, rig = {0: "a"}, np.array([[1, 2, 3]], np.uint8), "six cameras"

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"id": index}


def test_evenly_spaced_indices():
    assert evenly_spaced(9, 3) == [1, 4, 7]  # the middles of three thirds
    assert evenly_spaced(9, 3, ends=True) == [0, 4, 8]
    assert evenly_spaced(10, 1) == [5] and evenly_spaced(10, 1, ends=True) == [0]
    for ends in (False, True):
        assert evenly_spaced(4, 4, ends=ends) == evenly_spaced(4, 9, ends=ends) == [0, 1, 2, 3]
        assert evenly_spaced(4, 0, ends=ends) == evenly_spaced(0, 3, ends=ends) == []
    with pytest.raises(ValueError, match="count is -1"):
        evenly_spaced(4, -1)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 1), (100, 33), (1000, 137), (1000, 999)])
def test_gaps_between_evenly_spaced_indices_are_equal_to_one(total, count, ends):
    indices = evenly_spaced(total, count, ends=ends)
    assert indices == sorted(set(indices)) and len(indices) == count
    assert indices[0] >= 0 and indices[-1] < total
    if count > 1:
        gaps = np.diff(indices)
        assert gaps.max() - gaps.min() <= 1
        before, after = indices[0], total - 1 - indices[-1]
        assert (before, after) == (0, 0) if ends else abs(before - after) <= 1


def test_a_subset_keeps_names_and_colors_in_its_own_order():
    subset = Subset(Five(), (3, 0))
    assert [subset[i]["id"] for i in range(len(subset))] == [3, 0]
    assert subset.id2label == {0: "a"} and subset.palette is Five.palette
    plain = Subset([1, 2], [1])
    assert plain[0] == 2 and plain.id2label == {} and plain.palette is None
    assert Subset.evenly_spaced(Five(), 2).indices == [1, 3]
    assert Subset.evenly_spaced(Five()).indices == Subset.evenly_spaced(Five(), 50).indices == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        Subset.evenly_spaced(Five(), 0)


@pytest.mark.parametrize("wrap", [SkipUnreadable, lambda data: Cropped(data, dict)])
def test_wrappers_know_all_that_the_data_set_knows(wrap):
    wrapped = wrap(Five())
    assert len(wrapped) == 5 and wrapped[4] == {"id": 4}
    assert wrapped.id2label == {0: "a"} and wrapped.palette is Five.palette and wrapped.rig == "six cameras"
    with pytest.raises(AttributeError, match="heading"):
        _ = wrapped.heading


def test_wrappers_travel_to_worker_processes():
    copy = pickle.loads(pickle.dumps(Cropped(SkipUnreadable(Five()), dict)))
    assert copy[2] == {"id": 2} and copy.rig == "six cameras"


def test_samples_are_cropped_one_by_one():
    seen = Cropped(Five(), lambda sample: {**sample, "seen": True})
    assert seen[1] == {"id": 1, "seen": True}


class Pickles(Five):
    """A dataset with a state of its own, as those with open files have."""

    def __getstate__(self):
        return {"file": None}


def test_wrappers_are_pickled_as_themselves():
    """On Python 3.10, where objects have no `__getstate__`, the wrapper asked the dataset inside for one."""
    wrapped = Cropped(Pickles(), dict)
    with pytest.raises(AttributeError):
        type(wrapped).__getattr__(wrapped, "__getstate__")
    again = pickle.loads(pickle.dumps(wrapped))
    assert len(again) == 5 and again[2] == {"id": 2} and again.rig == "six cameras"


def test_skipping_ends_with_the_dataset():
    data = SkipUnreadable(Five())
    assert [sample["id"] for sample in data] == [0, 1, 2, 3, 4]
    assert data[-1]["id"] == 4
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"sample {index} of 5"):
            data[index]


def test_a_subset_tells_what_the_whole_lacks():
    whole = Five()
    whole.missing, whole.warnings, whole.without_depth = ["a.png"], ["odd"], 2
    part = Subset(whole, [0, 3])
    assert (part.missing, part.warnings, part.without_depth) == (["a.png"], ["odd"], 2)
    assert (Subset(Five(), [0]).missing, Subset(Five(), [0]).without_depth) == ([], 0)
