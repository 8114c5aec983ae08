"""Optimizers against PyTorch's classes, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from nap_bench.optimizers import OPTIMIZERS, SGD, Adam
from nap_bench.spec import Part


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam(beta1=0.8), dict(kind=torch.optim.Adam, betas=(0.8, 0.999))),
        (SGD(), dict(kind=torch.optim.SGD)),
        (SGD(momentum=0.9), dict(kind=torch.optim.SGD, momentum=0.9)),
        (SGD(momentum=0.9, nesterov=True), dict(kind=torch.optim.SGD, momentum=0.9, nesterov=True)),
    ],
    ids=["adam", "sgd", "momentum", "nesterov"],
)
def test_a_step_is_pytorchs_from_the_first_on_and_with_a_rate_that_changes(ours, theirs):
    gen, kind = torch.Generator().manual_seed(0), theirs.pop("kind")
    flat = torch.randn(2, 64, generator=gen)
    reference = torch.nn.Parameter(flat.clone())
    optimizer, memory = kind([reference], lr=1.0, **theirs), ours.start(flat)
    for step in range(6):
        lr, gradient = 0.1 / (step + 1), torch.randn(2, 64, generator=gen)
        reference.grad, optimizer.param_groups[0]["lr"] = gradient.clone(), lr
        optimizer.step()
        ours.step(flat, gradient, memory, torch.tensor(lr))
        assert torch.allclose(flat, reference, rtol=1e-6, atol=1e-7)


def test_nesterov_looks_ahead_of_heavy_ball():
    """Constant gradient g, momentum m: heavy ball's first steps are g and (1 + m) g, Nesterov's (1 + m) g and (1 + m + m^2) g."""
    for nesterov, lengths in ((False, (1.0, 1.9)), (True, (1.9, 2.71))):
        settings = SGD(momentum=0.9, nesterov=nesterov)
        flat = torch.zeros(1, 64)
        memory = settings.start(flat)
        for wanted in lengths:
            before = flat.clone()
            settings.step(flat, torch.ones(1, 64), memory, torch.tensor(1.0))
            assert torch.allclose(before - flat, torch.full((1, 64), wanted))


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="momentum > 0 for nesterov=True; found momentum=0.0"):
        SGD(nesterov=True)


def test_an_optimizer_that_gained_a_setting_keeps_the_name_it_had():
    assert Part.of(SGD(momentum=0.9)).params == (("clip_norm", None), ("momentum", 0.9))
    for settings in (SGD(momentum=0.5, nesterov=True), Adam(clip_norm=1.0)):
        assert Part.from_dict(Part.of(settings).as_dict()).build(OPTIMIZERS, "optimizer") == settings
