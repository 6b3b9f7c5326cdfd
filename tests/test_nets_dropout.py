"""Spatial dropout tied to pictures: the same channels in whatever batch the picture stands."""

import pytest
import torch

from cxr_ray.nets.dropout import SpatialDropout, key_dropout
from cxr_ray.nets.path import Path
from cxr_ray.nets.segmenter import Segmenter


def dropped(dropout: SpatialDropout, keys: list[int], channels: int = 4000) -> torch.Tensor:
    dropout.keys = keys
    return dropout(torch.ones(len(keys), channels, 2, 2))


def test_draws_depend_on_key_and_place_only() -> None:
    first, second = SpatialDropout(place=0), SpatialDropout(place=1)
    together = dropped(first, [11, 12, 13])
    assert torch.equal(dropped(first, [12])[0], together[1])
    assert torch.equal(dropped(first, [13, 11])[1], together[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(dropped(second, [11])[0], together[0])


def test_drops_whole_channels_at_its_rate_and_keeps_the_mean() -> None:
    out = dropped(SpatialDropout(place=0), [1, 2, 3, 4])
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / 0.95]))
    assert torch.equal(out[:, :, 0, 0], out[:, :, 1, 1])
    share = float((out[:, :, 0, 0] == 0).float().mean())
    assert share == pytest.approx(0.05, abs=0.01)


def test_does_nothing_in_eval_mode_or_at_rate_zero() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert SpatialDropout(place=0).eval()(x) is x
    assert SpatialDropout(place=0, rate=0.0)(x) is x


def test_another_number_of_keys_is_refused() -> None:
    dropout = SpatialDropout(place=0)
    dropout.keys = [1, 2]
    with pytest.raises(ValueError, match="3 pictures, got 2"):
        dropout(torch.ones(3, 2, 2, 2))


@pytest.mark.parametrize("model", [Segmenter(), Path()])
def test_every_dropout_of_a_network_has_its_own_place(model: torch.nn.Module) -> None:
    key_dropout(model, [5])
    dropouts = [module for module in model.modules() if isinstance(module, SpatialDropout)]
    assert len({dropout.place for dropout in dropouts}) == len(dropouts) > 2
    assert all(dropout.keys == [5] for dropout in dropouts)
    key_dropout(model, None)
    assert all(dropout.keys is None for dropout in dropouts)
    assert not [name for name in model.state_dict() if "dropout" in name]
