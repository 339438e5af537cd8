"""What holds on every device: on a GPU, where there is one, and on a stand-in for it.

``pytest -m gpu`` runs what needs CUDA. `elsewhere.Elsewhere` is a device of whose tensors the CPU
holds the values: there results are equal to the last bit, a tensor that a model has left on the
CPU raises, and so does every operation that a GPU's host would wait for.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from conftest import COMPONENTS
from elsewhere import DEVICE, Elsewhere

from orrery.checkpoint import RECORD, build, read_checkpoint, restore, write_checkpoint
from orrery.physics.clusters import lowered_isothermal

NO_CUDA = not torch.cuda.is_available()
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_CUDA, reason="there is no CUDA")]
)
DEVICES = ["elsewhere", CUDA]
TOLERANCE = {"elsewhere": {"rtol": 0.0, "atol": 0.0}, "cuda": {"rtol": 2e-3, "atol": 2e-3}}
PREDICTED_ROWS, STEPS = 4, 30
# Training steps in which the host waits, and why
WAITS = {
    "abundances": "only stars with limits are integrated, and which ones depends on the batch",
    "dust": "conjugate gradients end when they have converged; HEALPix is computed on the CPU",
    "gems": "stars of clusters and of the field are picked, and how many depends on the batch",
}
# Predictions that are compared on a GPU alone, and why
ON_GPU_ALONE = {
    "feniks": "fits of so many operations take half a minute on the stand-in",
    "sed_emulator": "the same, a quarter of a minute",
    "gc_emulator": "the same of its solver, a minute",
    "scatter_vae": "derivatives by torch.func.jvp, which the stand-in does not pass on",
}


def pytest_generate_tests(metafunc):
    if "component" in metafunc.fixturenames:
        metafunc.parametrize("component", COMPONENTS)


@pytest.fixture
def checkpoint(component, runs, few_steps_of_a_solver):
    return read_checkpoint(runs(component) / "best.ckpt")


@pytest.fixture
def few_steps_of_a_solver(component, monkeypatch):
    """Those of gc_emulator's are all the same, and only their number costs."""
    if component != "gc_emulator":
        return
    solve = lowered_isothermal.solve
    monkeypatch.setattr(
        lowered_isothermal, "solve", lambda *args, **_: solve(*args[:3], steps=STEPS)
    )


@contextlib.contextmanager
def on(device):
    """The device, and a list of what its host has waited for: empty on CUDA, which raises."""
    if device == "cuda":
        yield torch.device("cuda"), []
    else:
        with Elsewhere() as elsewhere:
            yield DEVICE, elsewhere.waits


@contextlib.contextmanager
def refusing_to_wait(device):
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def restored(checkpoint, device="cpu"):
    return restore(checkpoint).to(device)


def training_batch(checkpoint):
    data = build(checkpoint[RECORD]["config"]["data"])
    data.setup("fit")
    return data, next(iter(data.train_dataloader()))


def moved(batch, device):
    return {name: values.to(device) for name, values in batch.items()}


def step_of(model, data, batch):
    """A function that makes one training step, and returns its loss.

    Of dust it is the energy of a step alone, since an iteration of MGVI takes minutes here.
    """
    model.train()
    model.trainer = SimpleNamespace(
        datamodule=data, max_epochs=1, estimated_stepping_batches=10, current_epoch=0
    )
    made = model.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made

    def step():
        if not model.automatic_optimization:
            return model.loss(batch).detach()
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        if model.fit.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), model.fit.clip)
        optimizer.step()
        return loss.detach()

    return step


@pytest.mark.parametrize("device", DEVICES)
def test_training_is_that_of_the_cpu_and_the_host_does_not_wait(component, checkpoint, device):
    data, batch = training_batch(checkpoint)
    here = restored(checkpoint)
    of_cpu = step_of(here, data, batch)
    losses = torch.stack([of_cpu(), of_cpu()])
    with on(device) as (there, waits):
        model = restored(checkpoint, there)
        step = step_of(model, data, moved(batch, there))
        first = step()  # copies constants to the device
        waits.clear()
        with contextlib.nullcontext() if component in WAITS else refusing_to_wait(there):
            second = step()
        if device == "elsewhere":
            assert bool(waits) == (component in WAITS), waits
        found = torch.stack([first, second]).cpu()
        trained = {name: values.cpu() for name, values in model.state_dict().items()}
    torch.testing.assert_close(found, losses, **TOLERANCE[device])
    weights = dict(here.state_dict())
    torch.testing.assert_close(trained, weights, equal_nan=True, **TOLERANCE[device])


@pytest.mark.parametrize("device", DEVICES)
def test_predictions_are_those_of_the_cpu(component, checkpoint, device):
    if device == "elsewhere" and component in ON_GPU_ALONE:
        pytest.skip(ON_GPU_ALONE[component])
    data = build(checkpoint[RECORD]["config"]["data"])
    batch = next(data.prediction_batches())
    batch = {name: values[:PREDICTED_ROWS] for name, values in batch.items()}
    with torch.no_grad():
        rows = restored(checkpoint).predict_step(batch)
        with on(device) as (there, _):
            predicted = restored(checkpoint, there).predict_step(moved(batch, there))
            assert {values.device.type for values in predicted.values()} == {there.type}
            predicted = {name: values.cpu() for name, values in predicted.items()}
    torch.testing.assert_close(predicted, rows, equal_nan=True, **TOLERANCE[device])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_bfloat16_trains_where_it_is_allowed(component, checkpoint, device):
    model = restored(checkpoint, device)
    if "bf16-mixed" not in model.fit.precisions:
        pytest.skip("this component needs more than bfloat16")
    _, batch = training_batch(checkpoint)
    batch = moved(batch, device)
    model.train()
    exact = model.loss(batch).detach()
    with torch.autocast(device, torch.bfloat16):
        loss = model.loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), exact, rtol=0.05, atol=0.05)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("device", [CUDA])
def test_a_model_of_the_device_is_saved_for_the_cpu(component, checkpoint, device, tmp_path):
    model = restore(checkpoint).to(device)
    write_checkpoint({"state_dict": model.state_dict(), RECORD: model.record}, tmp_path / "m.ckpt")
    state = restore(read_checkpoint(tmp_path / "m.ckpt")).state_dict()
    for name, values in checkpoint["state_dict"].items():
        torch.testing.assert_close(state[name], values, rtol=0, atol=0, equal_nan=True)


def test_the_stand_in_finds_what_fails_on_a_gpu():
    with Elsewhere() as elsewhere:
        x = torch.arange(3.0).to(DEVICE)
        elsewhere.waits.clear()
        with pytest.raises(RuntimeError, match="tensors of two devices"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="a generator of the CPU"):
            torch.rand(3, device=DEVICE, generator=torch.Generator())
        with pytest.raises(RuntimeError):
            x.numpy()
        assert not elsewhere.waits
        ways = {
            "_local_scalar_dense": lambda: bool((x > 1).any()),
            "index": lambda: x[x > 1],
            "nonzero": lambda: (x > 1).nonzero(),
            "_to_copy": lambda: torch.tensor([1.0, 2.0], device=x.device),
        }
        for name, wait in ways.items():
            elsewhere.waits.clear()
            wait()
            assert len(elsewhere.waits) == 1 and f"aten.{name}" in elsewhere.waits[0]
        assert (x * 2 + 1).cpu().tolist() == [1.0, 3.0, 5.0]
