"""The model of neural collapse: gradients, minimisers, influence and measures against autograd and brute force."""

import pytest
import torch

from lowdim import collapse as nc
from lowdim.checks import ParameterError

F64 = torch.float64
F = lambda values: torch.tensor(values, dtype=torch.float64)
LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0, 2])  # three classes of different sizes, in no order
EVEN = torch.arange(3).repeat_interleave(4)
CLOSE = dict(rtol=0, atol=1e-10)


def normal(random, *shape):
    return torch.randn(*shape, generator=random, dtype=F64)


def model(random, labels=LABELS, runs=3, d=5, beta=(0.3, 2.0, 40.0)):
    start = normal(random, runs, len(labels), d)
    return nc.BetaModel(start, labels, F([0.1, 0.5, 0.2]), F([0.2, 0.0, 0.4]), F(beta))


def written_out(m, run, W, H):
    """N f of one run, sample by sample, as in the paper but for samples in rows."""
    n, total = m.samples / m.classes, 0.0
    lw, lh, b = (float(v.flatten()[run]) for v in (m.decay_w, m.decay_h, m.beta))
    for i in range(m.samples):
        y = torch.eye(m.classes, dtype=F64)[m.labels[i]]
        total = total + (W @ H[i] - y).square().sum() / 2 + lh * H[i].square().sum() / 2
        total = total + b * (H[i] - m.start[run, i]).square().sum() / 2
    return total + (lw / n) * n * W.square().sum() / 2


def test_objective_and_gradients_are_those_of_autograd(random):
    m = model(random)
    W, H = normal(random, 3, 3, 5).requires_grad_(), normal(random, 3, 9, 5).requires_grad_()
    values = torch.stack([written_out(m, r, W[r], H[r]) for r in range(3)]) / m.samples
    torch.testing.assert_close(m.objective(W, H), values, **CLOSE)
    wanted = torch.autograd.grad(values.sum(), (W, H))
    for ours, theirs in zip(m.gradients(W, H), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert m.decay_w.flatten().tolist() == pytest.approx([0.3, 1.5, 0.6])  # n l_W with n = 9 / 3


def test_each_half_is_minimised(random):
    m = model(random)
    W, H = normal(random, 3, 3, 5), normal(random, 3, 9, 5)
    assert m.gradients(m.best_classifier(H), H)[0].abs().max() < 1e-12
    assert m.gradients(W, m.best_features(W))[1].abs().max() < 1e-12


def hessian_of(m, run, W, H):
    """Of N f, by autograd: rows of W, then samples of H."""
    flat = torch.cat([W[run].flatten(), H[run].flatten()])
    f = lambda v: written_out(m, run, v[: W[run].numel()].view_as(W[run]), v[W[run].numel() :].view_as(H[run]))
    return torch.autograd.functional.hessian(f, flat), W[run].numel()


@pytest.mark.parametrize("minimal", [False, True])
def test_schur_complements_are_those_of_the_full_hessian(random, minimal):
    m = model(random)
    W, H = normal(random, 3, 3, 5), normal(random, 3, 9, 5)
    if minimal:
        W, H = m.solve()
    S, G = m.reduced_hessian(W, H), m.influence(W, H)
    for run in range(3):
        full, k = hessian_of(m, run, W, H)
        a, b, c = full[:k, :k], full[:k, k:], full[k:, k:]
        torch.testing.assert_close(S[run], a - b @ torch.linalg.solve(c, b.mT), **CLOSE)
        onto_features = c - b.mT @ torch.linalg.solve(a, b)
        torch.testing.assert_close(G[run], m.beta[run].item() * torch.linalg.inv(onto_features), rtol=1e-10, atol=1e-10)


def test_the_reduced_hessian_is_that_of_the_reduced_objective(random):
    m = model(random)
    W = normal(random, 3, 3, 5)

    def reduced(flat):
        V = W.clone()
        V[1] = flat.view(3, 5)
        return m.objective(V, m.best_features(V))[1] * m.samples

    wanted = torch.autograd.functional.hessian(reduced, W[1].flatten())
    torch.testing.assert_close(m.reduced_hessian(W, m.best_features(W))[1], wanted, **CLOSE)


@pytest.mark.parametrize("beta", [(0.01,) * 3, (0.3, 2.0, 40.0)])
def test_the_solver_ends_at_minima_and_below_plain_descent(random, beta):
    m = model(random, beta=beta)
    W, H = m.solve()
    for gradient in m.gradients(W, H):
        assert gradient.abs().max() < 1e-10
    assert torch.linalg.eigvalsh(m.reduced_hessian(W, H)).min() > 0
    V = m.best_classifier(m.start)
    for _ in range(3000):  # alternating minimisation: slow, but nothing can go wrong
        V = m.best_classifier(m.best_features(V))
    assert (m.objective(W, H) <= m.objective(V, m.best_features(V)) + 1e-12).all()


def test_a_run_does_not_depend_on_its_neighbours(random):
    m = model(random)
    W, H = m.solve()
    for run in range(3):
        alone = nc.BetaModel(
            m.start[run : run + 1], LABELS, [0.1, 0.5, 0.2][run], [0.2, 0.0, 0.4][run], float(m.beta[run])
        )
        for ours, theirs in zip(alone.solve(), (W, H), strict=True):
            torch.testing.assert_close(ours[0], theirs[run], **CLOSE)


def test_influence_and_the_factor_within_classes_are_what_the_solver_does(random):
    m = model(random, labels=EVEN)
    W, H = m.solve()
    G, step = m.influence(W, H), 1e-5
    change = normal(random, *H.shape)
    moved = []
    for sign in (1, -1):
        other = nc.BetaModel(
            m.start + sign * step * change, EVEN, m.decay_w.flatten() / 4, m.decay_h.flatten(), m.beta.flatten()
        )
        moved.append(other.solve(W)[1])
    slope = (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close((G @ change.flatten(1).unsqueeze(2)).view_as(H), slope, rtol=1e-6, atol=1e-7)
    apart = lambda t: t - t.unflatten(1, (3, 4)).mean(2).repeat_interleave(4, 1)
    torch.testing.assert_close(apart(H), apart(m.start) @ m.within_factor(W), **CLOSE)
    block = nc.class_block(G, EVEN, 1, 2)
    assert torch.equal(block, G[:, 20:40, 40:60])


@pytest.mark.parametrize("labels", [EVEN, LABELS])
def test_collapse_is_a_global_minimum_and_stays_where_it_is(random, labels):
    basis = torch.linalg.qr(normal(random, 2, 5, 3)).Q
    W, H = nc.orthogonal_collapse(basis, labels, F([0.2, 0.4]), 0.3)
    free = nc.BetaModel(H, labels, F([0.2, 0.4]), 0.3, 0.0)
    for gradient in free.gradients(W, H):
        assert gradient.abs().max() < 1e-14
    held = nc.BetaModel(H, labels, F([0.2, 0.4]), 0.3, 3.0)
    for ours, theirs in zip(held.solve(), (W, H), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    loose = nc.BetaModel(normal(random, 2, len(labels), 5), labels, F([0.2, 0.4]), 0.3, 1e-4)
    found = free.objective(*loose.solve())
    torch.testing.assert_close(found, free.objective(W, H), rtol=0, atol=1e-5)
    assert (found >= free.objective(W, H) - 1e-14).all()
    assert nc.collapse_measures(H, labels)["nc1t"].max() < 1e-25


def test_balanced_lengths_are_the_papers_and_small_classes_vanish(random):
    basis = torch.linalg.qr(normal(random, 1, 5, 3)).Q
    W, H = nc.orthogonal_collapse(basis, EVEN, 0.2, 0.3)
    c = (0.2 * 0.3) ** 0.5
    torch.testing.assert_close(H.square().sum(2), torch.full((1, 12), (1 - c) * (0.2 / 0.3) ** 0.5, dtype=F64), **CLOSE)
    torch.testing.assert_close(W, (0.3 / 0.2) ** 0.5 * H[:, ::4], **CLOSE)
    few = torch.tensor([0] * 11 + [1] * 12 + [2])  # a share of 1/8 of the mean size
    _, H = nc.orthogonal_collapse(basis, few, 0.4, 0.4)  # c^2 = 0.16 > 1/8
    assert H[0, -1].abs().max() == 0
    assert H[0, 0].norm() > 0.5


def test_measures_are_those_of_their_definitions(random):
    features = normal(random, 2, 9, 5)
    found, (within, between) = nc.collapse_measures(features, LABELS), nc.scatter(features, LABELS)
    for run, h in enumerate(features):
        means = torch.stack([h[k == LABELS].mean(0) for k in range(3)])
        W = sum(torch.outer(v - means[y], v - means[y]) for v, y in zip(h, LABELS, strict=True)) / 9
        gap = means[LABELS] - h.mean(0)
        B = gap.mT @ gap / 9
        assert within[run] == pytest.approx(float(W.trace()))
        assert between[run] == pytest.approx(float(B.trace()))
        assert found["nc1t"][run] == pytest.approx(float(W.trace() / B.trace()))
        assert found["nc1"][run] == pytest.approx(float((W @ torch.linalg.pinv(B, rtol=1e-10)).trace() / 3))
        C = means - means.mean(0)
        gram = C @ C.mT
        simplex = (torch.eye(3, dtype=F64) - 1 / 3) / 2**0.5
        assert found["nc2"][run] == pytest.approx(float((gram / gram.norm() - simplex).norm()))
    torch.testing.assert_close(within + between, features.var(1, correction=0).sum(1), **CLOSE)
    one_by_one = [nc.collapse_measures(h, LABELS)["nc1"] for h in features]
    torch.testing.assert_close(found["nc1"], torch.stack(one_by_one), **CLOSE)


def test_nc1_leaves_out_directions_in_which_means_agree(random):
    means = torch.zeros(3, 5, dtype=F64)
    means[0, 0], means[1, 0] = 1.0, -1.0  # all means on a line: rank 1
    features = means[EVEN] + 0.1 * normal(random, 12, 5)
    flat = features - (features.unflatten(0, (3, 4)).mean(1) - means).repeat_interleave(4, 0)
    along = (flat - means[EVEN])[:, 0].square().mean() / (2 / 3)
    assert nc.collapse_measures(flat, EVEN)["nc1"] == pytest.approx(float(along / 3))


def test_a_diverged_run_is_nan_and_spoils_no_other(random):
    features = normal(random, 2, 9, 5)
    alone = nc.collapse_measures(features[1], LABELS)
    features[0, 3, 2] = torch.nan
    found = nc.collapse_measures(features, LABELS)
    for name, values in found.items():
        assert values[0].isnan()
        assert values[1] == pytest.approx(float(alone[name]))


def test_the_path_is_the_gradient_flow(random):
    start = normal(random, 2, 9, 5)
    H = start.clone().requires_grad_()
    m = nc.BetaModel(torch.zeros_like(start), LABELS, 0.2, F([0.3, 0.1]), 0.0)
    value = m.objective(m.best_classifier(H), H).sum()
    wanted = -9 * torch.autograd.grad(value, H)[0]
    torch.testing.assert_close(nc.velocity(start, LABELS, 0.2, F([0.3, 0.1])), wanted, **CLOSE)
    path = nc.central_path(start, LABELS, 0.2, F([0.3, 0.1]), [0.0, 0.4, 1.0])
    assert torch.equal(path[0], start)
    fine, tiny = start, 1e-3
    for _ in range(1000):
        half = fine + tiny / 2 * nc.velocity(fine, LABELS, 0.2, F([0.3, 0.1]))
        fine = fine + tiny * nc.velocity(half, LABELS, 0.2, F([0.3, 0.1]))
    torch.testing.assert_close(path[2], fine, rtol=0, atol=2e-5)


def test_a_firm_layer_moves_along_the_path(random):
    start = normal(random, 1, 12, 5)
    _, H = nc.BetaModel(start, EVEN, 0.1, 0.1, 1e4).solve()
    ahead = nc.velocity(start, EVEN, 0.1, 0.1) / 1e4
    torch.testing.assert_close(H - start, ahead, rtol=0, atol=float(ahead.abs().max()) * 1e-3)


def test_what_cannot_be_is_refused(random):
    start = normal(random, 2, 9, 5)
    with pytest.raises(ParameterError, match="decay_h and beta must not both be zero"):
        nc.BetaModel(start, LABELS, 0.1, 0.0, 0.0)
    with pytest.raises(ParameterError, match=r"labels must be from 0 up and leave out no class, got \[0, 2\]"):
        nc.BetaModel(start, torch.tensor([0, 2] * 4 + [0]), 0.1, 0.1, 1.0)
    with pytest.raises(ParameterError, match=r"labels must be \(samples,\) with samples = 9, got \(3,\)"):
        nc.BetaModel(start, torch.tensor([0, 1, 2]), 0.1, 0.1, 1.0)
    with pytest.raises(ParameterError, match="decay_w must be one number or one for each of 2 runs, got 3"):
        nc.BetaModel(start, LABELS, [0.1] * 3, 0.1, 1.0)
    with pytest.raises(ParameterError, match=r"steps must be more than 1, got \d runs left"):
        nc.BetaModel(start, LABELS, 0.1, 0.1, 0.1).solve(steps=1)
    with pytest.raises(ParameterError, match=r"start must be \(2, 3, 5\), to fit the model, got \(2, 3, 4\)"):
        nc.BetaModel(start, LABELS, 0.1, 0.1, 0.1).solve(start[:, :3, :4])
    with pytest.raises(ParameterError, match="times must rise"):
        nc.central_path(start, LABELS, 0.1, 0.1, [1.0, 0.5])
