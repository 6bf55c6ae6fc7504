"""The losses against closed forms, and the gather against one process."""

import math
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hycir_hf.losses import (
    backward_in_chunks,
    contrastive_loss,
    gather_features,
    hybrid_loss,
    phrase_loss,
    projection_loss,
    triplet_loss,
    zero_shot_loss,
)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_zero_features_give_log_b(batch_size):
    zeros = torch.zeros(batch_size, 8)
    assert contrastive_loss(zeros, zeros, 100.0).item() == pytest.approx(math.log(batch_size), abs=1e-6)


def test_two_orthogonal_pairs():
    eye = torch.eye(2)
    assert contrastive_loss(eye, eye, 3.0).item() == pytest.approx(math.log1p(math.exp(-3.0)), abs=1e-6)
    assert contrastive_loss(eye, eye.flip(0), 3.0).item() == pytest.approx(3.0 + math.log1p(math.exp(-3.0)), abs=1e-5)


def test_hn_nce_in_closed_form():
    eye = torch.eye(2)
    # One negative has the weight 1, whatever beta is.
    assert contrastive_loss(eye, eye, 3.0, beta=0.7).item() == pytest.approx(math.log1p(math.exp(-3.0)), abs=1e-6)
    assert contrastive_loss(eye, eye, 3.0, alpha=0.5).item() == pytest.approx(math.log(0.5 + math.exp(-3)), abs=1e-6)
    assert contrastive_loss(eye, eye, 3.0, alpha=0, beta=1).item() == pytest.approx(-3.0, abs=1e-6)
    # Query 0 has negatives of similarity 1 and 0, query 1 of 0 and 0, query 2 of 0 and 1; each target the same.
    queries = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    targets = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    weights = [2 / (1 + math.exp(-0.5 * 2)), 2 / (1 + math.exp(0.5 * 2))]  # of similarities 1 and 0, times 2
    mixed = math.log(0.8 + weights[0] * math.exp(2) + weights[1])
    same = math.log(0.8 * math.exp(2) + 2) - 2
    found = contrastive_loss(queries, targets, 2.0, alpha=0.8, beta=0.5)
    assert found.item() == pytest.approx((2 * mixed + same) / 3, abs=1e-6)


def test_hn_nce_becomes_infonce_and_has_a_gradient():
    queries, targets = unit(5, 8), unit(5, 8, seed=1)
    torch.testing.assert_close(
        contrastive_loss(queries, targets, 10.0, beta=1e-9), contrastive_loss(queries, targets, 10.0)
    )
    values = [contrastive_loss(queries, targets, 10.0, beta=beta).item() for beta in (0, 0.5, 1)]
    assert values == sorted(values) and values[0] < values[2]  # hard negatives cost more
    assert zero_shot_loss(queries, targets, 10.0, beta=1.0) == triplet_loss(queries, targets, 10.0, beta=1.0)
    leaf = queries.double().requires_grad_()
    zero_shot_loss(leaf[:1], targets[:1].double(), 100.0, alpha=0.5, beta=1.0).backward()
    assert torch.isfinite(leaf.grad).all()


def test_both_directions_count_the_same():
    queries, targets = unit(5, 8), unit(5, 8, seed=1)
    forth, back = contrastive_loss(queries, targets, 10.0), contrastive_loss(targets, queries, 10.0)
    torch.testing.assert_close(forth, back)


def test_hybrid_is_the_sum_of_the_two():
    features = [unit(4, 8, seed=0), unit(4, 8, seed=1), unit(3, 8, seed=2), unit(3, 8, seed=3)]
    zero_shot, triplet = zero_shot_loss(*features[:2], 10.0), triplet_loss(*features[2:], 10.0)
    assert zero_shot == contrastive_loss(*features[:2], 10.0)
    assert triplet == contrastive_loss(*features[2:], 10.0)
    terms = {"zs": zero_shot, "triplet": triplet}
    assert hybrid_loss(terms) == zero_shot + triplet
    assert hybrid_loss(terms, {"zs": 0.5, "triplet": 2.0}) == 0.5 * zero_shot + 2 * triplet
    assert hybrid_loss(terms, {"zs": 0.5}) == 0.5 * zero_shot + triplet


def test_half_precision_is_scored_in_float32():
    queries, targets = unit(6, 16).bfloat16(), unit(6, 16, seed=1).bfloat16()
    expected = contrastive_loss(queries.float(), targets.float(), 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(contrastive_loss(queries, targets, 100.0), expected)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 8\) and \(2, 8\)"):
        contrastive_loss(unit(3, 8), unit(2, 8), 1.0)


def test_gather_is_a_no_op_in_one_process():
    features = unit(3, 8)
    assert gather_features(features) is features


def _worker(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    queries, targets = (unit(4, 8, seed=s).chunk(2)[rank].clone().requires_grad_() for s in (0, 1))
    loss = contrastive_loss(queries, targets, 10.0, gather=True)
    loss.backward()
    torch.save((loss.detach(), queries.grad, targets.grad), f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_gather_equals_one_process(tmp_path):
    """Averaged over processes, as DDP does, the gradients are those of the whole batch in one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, args=(port, str(tmp_path)), nprocs=2)
    queries, targets = unit(4, 8, seed=0).requires_grad_(), unit(4, 8, seed=1).requires_grad_()
    loss = contrastive_loss(queries, targets, 10.0)
    loss.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for part in parts:
        torch.testing.assert_close(part[0], loss.detach())
    for i, whole in ((1, queries), (2, targets)):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]) / 2, whole.grad)


@pytest.mark.parametrize("sizes", [[6], [1, 5], [2, 2, 2]])
def test_chunks_give_the_whole_batchs_gradient(sizes):
    inputs, targets, weight = torch.randn(6, 5), unit(6, 8), torch.randn(5, 8)

    def loss_of(features):
        return contrastive_loss(torch.nn.functional.normalize(features, dim=-1), targets, 10.0)

    whole = weight.clone().requires_grad_()
    expected = loss_of(inputs @ whole)
    expected.backward()
    parts = weight.clone().requires_grad_()
    held = []

    def chunk(rows):
        held.append((len(rows), torch.is_grad_enabled()))
        return rows @ parts

    loss = backward_in_chunks([lambda rows=rows: chunk(rows) for rows in inputs.split(sizes)], loss_of)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.grad, whole.grad, atol=1e-6, rtol=0)
    assert held == [(size, False) for size in sizes] + [(size, True) for size in sizes]
    with pytest.raises(ValueError, match="loss_function"):
        backward_in_chunks([lambda: inputs @ weight], lambda features: parts.sum())


def test_phrase_and_projection_loss():
    features = unit(3, 8)
    assert phrase_loss(features, 5 * features).item() == pytest.approx(0, abs=1e-6)
    assert phrase_loss(features, -features).item() == pytest.approx(2, abs=1e-6)
    assert projection_loss(torch.zeros(2, 4), torch.full((2, 4), 3.0)).item() == 9.0
