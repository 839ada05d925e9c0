"""What a call keeps for its backward goes to a file and comes back, the same to the bit, and leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn

import dsjit
from dsjit.api import builder
from dsjit.api.entry import jitted_of
from dsjit.codegen.offload import files, stores
from dsjit.codegen.offload.tensors import read_in_order
from dsjit.config import Options
from tests.api.test_memory_budget import Block, arenas, loss_of, measured_peak
from tests.codegen.offload.test_host import LateCopies

X = torch.randn(1024, 192)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(3)])


def gradients(network, call, x=X):
    network.zero_grad()
    torch.manual_seed(1)
    call(network, x).backward()
    return [parameter.grad for parameter in network.parameters()]


def compiled(network, directory, **options):
    """A call that has been traced, with all that it keeps in files."""
    call = dsjit.jit(loss_of, offload_dir=str(directory), **options)
    gradients(network, call)
    return call


def stored_in(call):
    """How many tensors a forward puts into its file."""
    (tree,) = jitted_of(call).trees
    return tree.compilations[0].program.source.count("store.put(")


def test_gradients_are_bit_for_bit_those_of_what_is_kept_in_memory(network, tmp_path):
    plain = dsjit.jit(loss_of)
    gradients(network, plain)
    call = compiled(network, tmp_path)
    assert stored_in(call) >= 3
    for _ in range(2):
        for one, other in zip(gradients(network, call), gradients(network, plain), strict=True):
            assert torch.equal(one, other)


def test_results_with_backwards_of_their_own_fetch_what_is_theirs(network, tmp_path):
    other = nn.Sequential(*[Block() for _ in range(2)])
    parameters = [*network.parameters(), *other.parameters()]

    def losses(x):
        return loss_of(network, x), loss_of(other, x)

    calls = dsjit.jit(losses), dsjit.jit(losses, offload_dir=str(tmp_path))
    for order in (1, -1, 1):
        found = []
        for call in calls:
            torch.manual_seed(1)
            for parameter in parameters:
                parameter.grad = None
            for loss in call(X)[::order]:
                loss.backward()
            found.append([parameter.grad for parameter in parameters])
        for one, plain in zip(*found, strict=True):
            assert torch.equal(one, plain)
    assert stored_in(calls[1]) >= 3


def test_sizes_stay_exact(network, tmp_path):
    call = compiled(network, tmp_path)
    gradients(network, call, X[:512])
    trees = jitted_of(call).trees
    assert len(trees) == 2 and all("store.put(" in tree.compilations[0].program.source for tree in trees)


def test_less_memory_is_taken(network, tmp_path):
    plain, call = dsjit.jit(loss_of), compiled(network, tmp_path)
    for _ in range(2):
        gradients(network, plain), gradients(network, call)
    assert measured_peak(network, call) < 0.8 * measured_peak(network, plain)


def test_a_graph_that_is_retained_is_run_again(network, tmp_path):
    call = compiled(network, tmp_path)
    torch.manual_seed(1)
    network.zero_grad()
    loss = call(network, X)
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in network.parameters()]
    loss.backward()
    for parameter, gradient in zip(network.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def open_files(directory):
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.exists(link) and os.readlink(link).startswith(str(directory))]


@pytest.mark.parametrize("ends", ["backward", "dropped", "exception"])
def test_nothing_is_left_behind(network, tmp_path, ends):
    call = compiled(network, tmp_path)
    loss = call(network, X)
    assert os.listdir(tmp_path) == []
    if ends == "backward":
        loss.backward()
    if ends == "exception":
        with pytest.raises(dsjit.GradientError):
            torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    del loss
    gc.collect()
    assert os.listdir(tmp_path) == [] and open_files(tmp_path) == []


def test_a_full_disk_raises_before_anything_is_computed(network, tmp_path, monkeypatch):
    call = compiled(network, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", full)
    with pytest.raises(dsjit.OffloadError, match=r"No space left.*free some room"):
        call(network, X)
    monkeypatch.undo()
    call(network, X).backward()


def test_a_directory_that_is_gone_is_named(network, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    call = compiled(network, folder)
    folder.rmdir()
    with pytest.raises(dsjit.OffloadError, match=r"offload_dir='.*folder'"):
        call(network, X)


def test_what_was_changed_on_the_disk_is_refused(network, tmp_path, monkeypatch):
    call = compiled(network, tmp_path)
    written = os.pwrite
    monkeypatch.setattr(files.os, "pwrite", lambda file, content, at: written(file, bytes(len(content)), at))
    loss = call(network, X)
    monkeypatch.undo()
    with pytest.raises(dsjit.OffloadError, match="was changed on the disk"):
        loss.backward()
    with pytest.raises(dsjit.GradientError, match="call the function again"):
        loss.backward()


def test_hooks_of_the_users_get_tensors(network, tmp_path):
    call = compiled(network, tmp_path)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda tensor: tensor):
        loss = call(network, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.backward()
    assert seen and all(isinstance(tensor, torch.Tensor) for tensor in seen)


def test_explain_tells_what_is_in_files(network, tmp_path):
    call = compiled(network, tmp_path)
    told = dsjit.explain(call)(network, X)
    assert any(kept.place == "file" for kept in told.kept) and not all(kept.place == "file" for kept in told.kept)
    assert " file " in str(told)


def test_a_budget_puts_no_more_into_files_than_it_has_to(network, tmp_path):
    plan = dsjit.explain(compiled(network, tmp_path, memory_budget="1GiB"))(network, X).training
    assert plan.offloaded == 0
    call = compiled(network, tmp_path, memory_budget=int(0.9 * plan.peak))
    limited = dsjit.explain(call)(network, X).training
    assert limited.peak <= limited.budget
    assert limited.offloaded or limited.recomputed
    gradients(network, call)
    measured = measured_peak(network, call) + arenas(call)
    assert abs(measured - limited.peak) < 0.1 * limited.peak


@pytest.mark.parametrize("shape", [(4,), (3, 5), (0, 2), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64, torch.bfloat16])
def test_a_tensor_comes_back_as_it_was_put(tmp_path, shape, dtype):
    file = files.OffloadFile(str(tmp_path), 4096)
    tensor = torch.randint(0, 2, shape).to(dtype)
    turned = torch.randn(4, 6).t()
    stored = [file.put(tensor), file.put(turned)]
    read_in_order(stored[::-1])
    assert torch.equal(stored[1].fetch(), turned)
    assert stored[1].fetch().stride() == turned.stride()
    assert torch.equal(stored[0].fetch(), tensor) and stored[0].fetch().dtype is dtype


def test_only_what_the_same_backward_wants_is_read_ahead(tmp_path):
    file = files.OffloadFile(str(tmp_path), 4096)
    first, second = (file.put(torch.randn(8)) for _ in range(2))
    read_in_order((first, second))
    assert first.following is second
    read_in_order((first,))
    assert first.following is None


def test_what_is_read_ahead_outlives_a_backward_that_does_not_ask_for_it(tmp_path, monkeypatch):
    begun, dropped = threading.Event(), threading.Event()
    read = os.preadv

    def late(*args):
        begun.set()
        assert dropped.wait(60)
        return read(*args)

    monkeypatch.setattr(files.os, "preadv", late)
    stored = files.OffloadFile(str(tmp_path), 4096).put(torch.randn(8))
    reading = []
    submit = files.ThreadPoolExecutor.submit

    def watched(*args):
        future = submit(*args)
        reading.append((weakref.ref(args[-1]), future))
        return future

    monkeypatch.setattr(files.ThreadPoolExecutor, "submit", watched)
    read_in_order((stored,))
    assert begun.wait(60)
    del stored
    gc.collect()
    ((content, future),) = reading
    assert content() is not None
    dropped.set()
    future.result(60)


def on_a_gpu(monkeypatch):
    """CPU tensors are taken for a GPU's: what they keep goes to the memory of its host."""
    monkeypatch.setattr(stores, "CudaCopies", lambda device: LateCopies())
    tier = stores.OffloadTier("host memory", 1e10)
    monkeypatch.setattr(builder, "offload_tier", lambda options, on_gpu: tier if options.offload_to_host else None)


def test_gradients_are_bit_for_bit_those_of_what_stays_on_the_gpu(network, monkeypatch):
    on_a_gpu(monkeypatch)
    plain, call = dsjit.jit(loss_of), dsjit.jit(loss_of, offload_to_host=True)
    for _ in range(3):
        for one, other in zip(gradients(network, call), gradients(network, plain), strict=True):
            assert torch.equal(one, other)
    assert stored_in(call) >= 3
    told = dsjit.explain(call)(network, X)
    assert any(kept.place == "host memory" for kept in told.kept) and " host memory " in str(told)


def test_a_budget_puts_no_more_into_host_memory_than_it_has_to(network, monkeypatch):
    on_a_gpu(monkeypatch)
    peak = dsjit.explain(dsjit.jit(loss_of, offload_to_host=True, memory_budget="1GiB"))(network, X).training.peak
    call = dsjit.jit(loss_of, offload_to_host=True, memory_budget=int(0.9 * peak))
    limited = dsjit.explain(call)(network, X).training
    assert limited.peak <= limited.budget and limited.offloaded and limited.tier == "host memory"
    assert "go to host memory" in str(dsjit.explain(call)(network, X))


def test_on_the_cpu_nothing_goes_to_the_host(network):
    call = dsjit.jit(loss_of, offload_to_host=True)
    gradients(network, call), gradients(network, call)
    assert stored_in(call) == 0


@pytest.mark.parametrize(
    ("options", "on_gpu", "name"),
    [
        ({}, True, None),
        ({"offload_to_host": True}, True, "host memory"),
        ({"offload_to_host": True}, False, None),
        ({"offload_dir": "d"}, True, "file"),
        ({"offload_dir": "d", "offload_to_host": True}, True, "host memory"),
        ({"offload_dir": "d", "offload_to_host": True}, False, "file"),
    ],
)
def test_where_what_is_kept_goes(options, on_gpu, name):
    tier = builder.offload_tier(Options(**options), on_gpu)
    assert (None if tier is None else tier.name) == name
