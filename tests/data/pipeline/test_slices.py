import pytest
import torch

from ulna.data.pipeline.slices import coarsest_axis, neighbourhoods, seen_in_stack, stacked


def literal(image, axis, place, neighbours):
    """One slice after the other, beyond the ends the outermost."""
    last, rows = image.shape[axis + 1] - 1, []
    for offset in range(-neighbours, neighbours + 1):
        at = min(max(place + offset, 0), last)
        rows += [channel.select(axis, at) for channel in image]
    return torch.stack(rows)


@pytest.mark.parametrize("neighbours", [0, 1, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [(4, 5, 6), (1, 1, 1), (2, 1, 3)])
def test_a_slice_is_seen_with_its_neighbours(size, axis, neighbours):
    image = torch.arange(2.0 * torch.Size(size).numel()).reshape(2, *size)
    places = list(range(size[axis]))
    found = neighbourhoods(image, axis, places, neighbours)
    stack = stacked(image, axis, neighbours)
    for place in places:
        wanted = literal(image, axis, place, neighbours)
        assert torch.equal(found[place], wanted)
        seen = seen_in_stack(stack, place, neighbours)
        assert torch.equal(seen, wanted)
        assert seen.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr(), "a view"


def test_slices_lie_across_the_coarsest_axis():
    assert coarsest_axis((5.0, 0.7, 0.7), oriented=True) == 0
    assert coarsest_axis((0.7, 0.7, 5.0), oriented=False) == 2
    assert coarsest_axis((1.0, 1.0, 0.999), oriented=True) == 2, "as good as equal"
    assert coarsest_axis((1.0, 1.0, 0.9), oriented=True) == 1
