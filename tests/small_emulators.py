"""Networks of sed_emulator and feniks for tests, small and trained for seconds."""

import pytest
import torch

from orrery.models.sed_emulator import SedEmulator, covariance


def train_briefly(model: SedEmulator, data, steps: int, covariance_steps: int) -> None:
    """Fit and calibrate in place, to some hundredths of a magnitude."""
    model.prepare(data)
    batch = data.training_batch()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(batch["parameters"]), (256,))
        optimizer.zero_grad()
        model.loss({name: values[rows] for name, values in batch.items()}).backward()
        optimizer.step()
        schedule.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance, "STEPS", covariance_steps)
        model.calibrate(data)
