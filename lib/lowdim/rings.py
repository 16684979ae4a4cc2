"""A latent posterior that is known: Gaussian modes on a circle, random decoders and instruments, posteriors on a grid.

A test bed for samplers. The score of the prior is exact, and the posterior of each measurement is computed by brute
force on a grid of the plane, so that a sampler's error is a distance to the truth.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lowdim import checks as ok
from lowdim.checks import integer, number
from lowdim.diffusion import GaussianMixture, LatentDiffusion, Schedule
from lowdim.operators import Operator
from lowdim.quality import sliced_wasserstein

MIXTURE = ok.kind(GaussianMixture, "a GaussianMixture")


@ok.takes(schedule=ok.kind(Schedule, "a Schedule"), device=ok.kind((str, torch.device), "the name of a device"))
def ring(schedule: Schedule, modes: int = 8, std: float = 0.08, device="cpu") -> GaussianMixture:
    """Equal Gaussian modes on the unit circle."""
    integer("modes", modes, at_least=2), number("std", std, above=0)
    angle = torch.arange(modes, dtype=torch.float64, device=device) * 2 * math.pi / modes
    eye = torch.eye(2, dtype=torch.float64, device=device)
    return GaussianMixture(torch.ones_like(angle), torch.stack([angle.cos(), angle.sin()], 1),
                           std**2 * eye.expand(modes, 2, 2), schedule)  # fmt: skip


@ok.takes(mixture=MIXTURE)
def plane_model(mixture: GaussianMixture) -> LatentDiffusion:
    """The mixture as a model whose images are its latents: decoders that differ from sample to sample are operators."""
    same = lambda z: z
    return LatentDiffusion(same, same, mixture.noise, mixture.schedule, (2,), (2,), pixels=None, plain=True)


class Instruments(Operator):
    """One number of each latent, ``y = a.x + (b.x)^2 / 8`` with ``x = tanh(z W)``: decoder and measurement in one.

    Args:
        W: ``(samples, 2, n)``.
        a, b: ``(samples, n)``.
    """

    linear, image_shape, shape = False, (2,), (1,)

    @ok.takes(
        W=ok.tensor("samples 2 n", finite=False),
        a=ok.tensor("samples n", finite=False),
        b=ok.tensor("samples n", finite=False),
    )
    def __init__(self, W: Tensor, a: Tensor, b: Tensor):
        self.W, self.a, self.b = W, a, b

    def __call__(self, z: Tensor) -> Tensor:
        x = torch.tanh(z[:, :1] * self.W[:, 0] + z[:, 1:] * self.W[:, 1])
        return (x * self.a).sum(1, keepdim=True) + (x * self.b).sum(1, keepdim=True).square() / 8

    def pull(self, z: Tensor, error: Tensor) -> Tensor:
        """The gradient of ``y . error`` in the latents, ``(samples, 2)``."""
        x = torch.tanh(z[:, :1] * self.W[:, 0] + z[:, 1:] * self.W[:, 1])
        inner = torch.addcmul(self.a, self.b, (x * self.b).sum(1, keepdim=True), value=0.25)
        inner = inner.mul_(error).addcmul_(inner, x.square(), value=-1)
        return (self.W * inner[:, None]).sum(2)

    def select(self, samples: Tensor) -> "Instruments":
        return Instruments(self.W[samples], self.a[samples], self.b[samples])


@ok.takes(mixture=MIXTURE, count=ok.count(), random=ok.generator, n=ok.count(2))
def ambiguous_instruments(mixture: GaussianMixture, count: int, random: torch.Generator, n: int = 8):
    """Random instruments, each unable to tell two modes of the mixture apart, and the pairs of modes.

    Decoder ``W``, pair ``(i, j)``, ``a`` and ``b`` are drawn at random; then ``a`` and ``b`` are made orthogonal to
    ``D(m_i) - D(m_j)``, so that both modes give one ``y``. Other modes may fit it too: nothing is picked.

    Returns:
        ``Instruments`` for ``count`` samples, and ``(count, 2)`` numbers of modes.
    """
    means = mixture.means
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=means.dtype).to(means.device)
    W, a, b = draw(count, 2, n), draw(count, n), draw(count, n)
    pair = torch.rand(count, len(means), generator=random).argsort(1)[:, :2].to(means.device)
    images = torch.tanh(means[pair] @ W)
    along = torch.nn.functional.normalize(images[:, 0] - images[:, 1], dim=1)
    a, b = (c - (c * along).sum(1, keepdim=True) * along for c in (a, b))
    return Instruments(W, a, b), pair


class GridPosterior:
    """Exact posteriors of latents in the plane, one for each measurement, on a grid.

    Attributes:
        reference: ``(runs, samples, 2)``, exact samples.
        mass: ``(runs, modes)``, share of the posterior that is nearest to each mode.
        edge: ``(runs,)``, log prior three nats below its 1 % quantile under the posterior: the end of the manifold.
        side: ``(points,)``, the grid's coordinates.
    """

    @ok.takes(
        mixture=MIXTURE,
        operator=ok.kind(Operator, "an Operator"),
        y=ok.tensor("runs ..."),
        samples=ok.count(),
        random=ok.generator,
        reach=ok.real(above=0),
    )
    def __init__(self, mixture: GaussianMixture, operator: Operator, y: Tensor, sigma: float, samples: int,
                 random: torch.Generator, points: int = 301, reach: float = 1.5):  # fmt: skip
        self.mixture, means = mixture, mixture.means
        self.side = torch.linspace(-reach, reach, integer("points", points, at_least=2)).to(means)
        grid = torch.cartesian_prod(self.side, self.side)
        log_prior, nearest = mixture.log_density(grid), torch.cdist(grid, means).argmin(1)
        order, found = log_prior.argsort(), []
        for k in range(len(y)):
            misfit = (operator.select(torch.tensor([k], device=means.device))(grid) - y[k]).flatten(1).square().sum(1)
            weight = (log_prior - 0.5 * misfit / number("sigma", sigma, above=0) ** 2).softmax(0)
            picks = torch.multinomial(weight.cpu(), samples, replacement=True, generator=random).to(means.device)
            jitter = torch.rand(samples, 2, generator=random, dtype=means.dtype).to(means.device) - 0.5
            mass = torch.zeros(len(means)).to(means).index_add_(0, nearest, weight)
            rank = torch.searchsorted(weight[order].cumsum(0), torch.tensor(0.01).to(means))
            found.append((grid[picks] + jitter * (self.side[1] - self.side[0]), mass, log_prior[order[rank]] - 3))
        self.reference, self.mass, self.edge = map(torch.stack, zip(*found, strict=True))

    @ok.takes(latents=ok.tensor("samples 2", finite=False))
    def compare(self, latents: Tensor) -> dict[str, Tensor]:
        """How far samples ``(runs * samples, 2)`` are from the posteriors, run by run; all ``(runs, ...)``.

        Returns:
            ``off``, share of samples off the manifold; ``distance``, sliced Wasserstein; ``mass`` of the modes;
            ``wrong``, share in modes that hold less than 2 % of the posterior; ``top``, share in the fullest mode.
        """
        z = latents.unflatten(0, (len(self.edge), -1))
        off = self.mixture.log_density(latents).view(z.shape[:2]) < self.edge[:, None]
        mass = one_hot(torch.cdist(z, self.mixture.means).argmin(2), len(self.mixture.means)).double().mean(1)
        return dict(off=off.double().mean(1), distance=sliced_wasserstein(z, self.reference), mass=mass,
                    wrong=(mass * (self.mass < 0.02)).sum(1), top=mass.amax(1))  # fmt: skip
