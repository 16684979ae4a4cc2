"""Training of whole populations: every run with its own order of samples and its own step size, all in one batch.

``train`` takes steps of gradient descent, SGD, momentum, Adam or AdamW. A ``Trainer`` can be stopped, saved as plain
tensors, and goes on as if nothing had happened. A run that diverges stops, as NaN, and the others go on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief, integer, number
from lowdim.descent import DivergenceError, Trajectory
from lowdim.files import write_atomically
from lowdim.runtime import parallel

CHUNK = 100  # steps between two looks at the losses
OPTIMISERS = {"gd": 0, "sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}  # with their buffers


@ok.takes(steps=ok.count(), warmup=ok.count(0))
def cosine(steps: int, warmup: int = 0) -> Callable[[int], float]:
    """A schedule: the step size rises linearly over ``warmup`` steps and falls to zero along a cosine.

    Raises:
        ParameterError: a warm-up that is not shorter than the whole.
    """
    if warmup >= steps:
        raise ParameterError(f"warmup must be below steps = {steps}, got {warmup}.")
    wave = lambda t: 0.5 * (1 + math.cos(math.pi * min(1.0, (t - warmup) / (steps - warmup))))
    return lambda t: (t + 1) / warmup if t < warmup else wave(t)


class Trainer:
    """Optimiser, order of samples and progress of a population.

    Args:
        population: as in ``lowdim.populations``.
        eta: step size, one for all or one for each run.
        optimiser: ``"gd"`` (all samples each step), ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``. Momentum and
            Adam are PyTorch's; weight decay is part of the gradient but for AdamW.
        batch: samples a step, drawn without repetition, in an order of its own for each run and epoch; what is left of
            an epoch is not used. ``None``: all samples.
        momentum, betas, eps: of the optimisers.
        decay: weight decay, one for all or pattern -> value, such as ``{"weight.*": 1e-4}``, and none for the rest; a
            value is one number or one for each run.
        clip: largest norm of a run's gradient.
        schedule: step (from 0) -> factor of the step sizes, such as ``cosine(1000)``.
        generator: source of the orders; needed with ``batch``.
        bound: a run has diverged when its loss is larger or not finite.

    Raises:
        ParameterError: a batch larger than the data, step sizes that are not one or one for each run, a pattern that
            fits no parameter, ``"gd"`` with a batch, a batch without a generator.
    """

    @ok.takes(
        population=ok.has("flat", "flat_gradients", "parameters", "backward", "take"),
        eta=ok.values(at_least=0),
        optimiser=ok.one_of(*OPTIMISERS),
        batch=ok.optional(ok.count()),
        momentum=ok.real(at_least=0, below=1),
        eps=ok.real(at_least=0),
        clip=ok.optional(ok.real(above=0)),
        schedule=ok.optional(ok.function),
        generator=ok.optional(ok.generator),
        bound=ok.real(above=0),
    )
    def __init__(self, population, eta, optimiser="sgd", *, batch=None, momentum=0.9, betas=(0.9, 0.999), eps=1e-8,
                 decay=0.0, clip=None, schedule=None, generator=None, bound=1e8):  # fmt: skip
        if batch is not None and (batch > population.samples or optimiser == "gd"):
            words = "left out for 'gd'" if optimiser == "gd" else f"at most {population.samples}, the samples"
            raise ParameterError(f"batch must be {words}, got {batch}.")
        if batch is not None and generator is None:
            raise ParameterError("generator must be given with a batch, for the order of the samples, got None.")
        ok.one_or_each("eta", eta, population.runs)
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise ParameterError(f"betas must be two numbers, got {brief(betas)}.")
        self.betas = tuple(number(f"betas[{i}]", b, at_least=0, below=1) for i, b in enumerate(betas))
        self.population, self.optimiser, self.batch, self.momentum = population, optimiser, batch, momentum
        self.eps, self.clip, self.schedule, self.bound = eps, clip, schedule, bound
        flat, runs = population.flat, population.runs
        sizes = torch.as_tensor(eta, dtype=torch.float64).flatten()
        self.eta, self.decay = sizes.expand(runs), decay
        self._eta = float(sizes[0]) if (sizes == sizes[0]).all() else self._spread(self.eta)
        self._decay = self._decays(decay)
        self.buffers = [torch.zeros_like(flat) for _ in range(OPTIMISERS[optimiser])]
        self._scratch = torch.empty_like(flat)
        self.seed = 0 if batch is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
        self.taken, self._epoch, self._order = 0, -1, None
        self.diverged_at = torch.full((runs,), -1, dtype=torch.long, device=flat.device)
        self._losses = flat.new_zeros(CHUNK, runs)

    def _spread(self, values: Tensor) -> Tensor:
        """``(runs,)`` numbers, each as often as its run has parameters, in the order of the flat tensor."""
        values = values.to(self.population.flat)
        return torch.cat([values.repeat_interleave(p[0].numel()) for p in self.population.state])

    def _decays(self, decay):
        if not isinstance(decay, Mapping):
            return number("decay", decay, at_least=0)
        found = []
        for pattern, value in decay.items():
            ok.values(at_least=0)(f"decay[{pattern!r}]", value, {})
            ok.one_or_each(f"decay[{pattern!r}]", value, self.population.runs)
            if not any(fnmatchcase(name, pattern) for name in self.population.parameters):
                names = ", ".join(self.population.parameters)
                raise ParameterError(f"decay must have patterns of parameters ({names}), got {pattern!r}.")
        for name, p in self.population.parameters.items():
            each = torch.as_tensor(self.decay_of(name), dtype=p.dtype, device=p.device).flatten()
            found.append(each.expand(self.population.runs).repeat_interleave(p[0].numel()))
        return torch.cat(found)

    def decay_of(self, name: str) -> float | Tensor:
        """The weight decay of a parameter, one number or one for each run."""
        if not isinstance(self.decay, Mapping):
            return self.decay
        return next((value for pattern, value in self.decay.items() if fnmatchcase(name, pattern)), 0.0)

    # ------------------------------------------------------------ samples

    def picks(self, step: int) -> Tensor:
        """The samples of each run at a step, ``(runs, batch)``: a function of the trainer's seed and the step alone."""
        epoch, place = divmod(step, self.population.samples // self.batch)
        if epoch != self._epoch:
            random = torch.Generator().manual_seed((self.seed + epoch) % 2**63)
            orders = [torch.randperm(self.population.samples, generator=random) for _ in range(self.population.runs)]
            self._order, self._epoch = torch.stack(orders).to(self.population.flat.device), epoch
        return self._order[:, place * self.batch : (place + 1) * self.batch]

    # ------------------------------------------------------------ steps

    def step(self) -> Tensor:
        """One step of all runs; their losses before it, ``(runs,)``, on the samples of the step."""
        p = self.population
        data = (p.inputs, p.targets) if self.batch is None else p.take(self.picks(self.taken))
        losses = p.backward(*data)
        if self.clip is not None:
            self._clip_gradients()
        factor = 1.0 if self.schedule is None else number("schedule(step)", self.schedule(self.taken), at_least=0)
        self.taken += 1
        self._move(factor)
        return losses

    def _move(self, factor: float) -> None:
        flat, g = self.population.flat, self.population.flat_gradients
        decays = isinstance(self._decay, Tensor) or self._decay > 0
        if decays and self.optimiser != "adamw":
            g.add_(flat, alpha=self._decay) if isinstance(self._decay, float) else g.addcmul_(flat, self._decay)
        if self.optimiser == "momentum":
            g = self.buffers[0].mul_(self.momentum).add_(g)
        if self.optimiser in ("adam", "adamw"):
            if decays and self.optimiser == "adamw":
                torch.mul(flat, self._decay, out=self._scratch)
                self._subtract(self._scratch, factor)
            first, second = self.buffers
            b1, b2 = self.betas
            first.lerp_(g, 1 - b1)
            second.mul_(b2).addcmul_(g, g, value=1 - b2)
            torch.sqrt(second, out=self._scratch).mul_((1 - b2**self.taken) ** -0.5).add_(self.eps)
            g = torch.div(first, self._scratch, out=self._scratch)
            factor = factor / (1 - b1**self.taken)
        self._subtract(g, factor)

    def _subtract(self, direction: Tensor, factor: float) -> None:
        """The parameters move against a direction, each run by its step size."""
        if isinstance(self._eta, float):
            self.population.flat.sub_(direction, alpha=self._eta * factor)
        else:
            self.population.flat.addcmul_(direction, self._eta, value=-factor)

    def _clip_gradients(self) -> None:
        g = self.population.gradients.values()
        norms = torch.stack([torch.linalg.vector_norm(x.flatten(1), dim=1) for x in g]).square().sum(0).sqrt()
        scale = (self.clip / (norms + 1e-6)).clamp(max=1)
        for x in g:
            x.mul_(scale.view(-1, *[1] * (x.dim() - 1)))

    @ok.takes(
        steps=ok.count(0),
        record=ok.optional(ok.mapping),
        every=ok.count(),
        on_divergence=ok.one_of("raise", "mask"),
        describe=ok.function,
    )
    def run(self, steps: int, *, record=None, every: int = 1, on_divergence="mask", describe=lambda run: ""):
        """Take ``steps`` more steps.

        Args:
            record: name -> function without arguments, ``(runs, ...)``; evaluated whenever the number of steps taken
                so far is a multiple of ``every``, on the device, without waiting for it. The record ``"batch loss"``
                is always there: ``(steps, runs)``, before each step, on its samples.
            on_divergence: ``"mask"``: a run that diverges stops, as NaN, and the others go on; or ``"raise"``.
            describe: run -> words for the error message.

        Returns:
            ``Trajectory``: ``steps`` are those of the records; ``diverged_at`` is the number of steps after which a
            run was out of bounds, -1 for the others.

        Raises:
            DivergenceError: with ``on_divergence="raise"``.
        """
        wanted = [t for t in range(self.taken, self.taken + steps + 1) if t % every == 0]
        values, device = {name: [] for name in record or {}}, self.population.flat.device
        losses = self._losses.new_empty(steps, self.population.runs)

        def look():
            if record and self.taken % every == 0:
                for name, function in record.items():
                    values[name].append(function().clone())

        look()
        for first in range(0, steps, CHUNK):
            last = min(first + CHUNK, steps)
            for t in range(first, last):
                losses[t] = self.step()
                look()
            self._mask(losses[first:last], on_divergence, describe)
        stacked = {name: torch.stack(v) for name, v in values.items() if v}
        stopped = torch.full_like(self.diverged_at, -1)
        at = torch.tensor(wanted, dtype=torch.long, device=device)
        return Trajectory(at, {"batch loss": losses, **stacked}, self.diverged_at.clone(), stopped)

    def _mask(self, losses: Tensor, on_divergence: str, describe) -> None:
        """Find runs that diverged in the last steps, date them and set them to NaN, without waiting for the device."""
        out = ~(losses.abs() <= self.bound)
        begin = self.taken - len(losses)
        when = begin + out.to(torch.int8).argmax(0)
        sane = torch.stack([p.flatten(1).isfinite().all(1) for p in self.population.state]).all(0)
        when = torch.where(out.any(0), when, torch.where(sane, -1, self.taken))
        fresh = (when >= 0) & (self.diverged_at < 0)
        self.diverged_at = torch.where(fresh, when, self.diverged_at)
        if on_divergence == "raise" and fresh.any():
            run = int(torch.where(fresh, when, 2**62).argmin())
            words = f" ({words})" if (words := describe(run)) else ""
            message = (
                f"run {run} of {len(fresh)}{words} diverged at step {int(when[run])}: its loss passed {self.bound:g}."
            )
            raise DivergenceError(message, run, int(when[run]))
        for p in self.population.state:
            p.masked_fill_((self.diverged_at >= 0).view(-1, *[1] * (p.dim() - 1)), float("nan"))

    # ------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on: plain tensors, copies."""
        found = {f"parameter {name}": p.clone() for name, p in self.population.parameters.items()}
        found |= {f"buffer {i}": b.clone() for i, b in enumerate(self.buffers)}
        return found | {"taken": torch.tensor(self.taken), "seed": torch.tensor(self.seed),
                        "diverged_at": self.diverged_at.clone()}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state_dict`` of a trainer with the same arguments.

        Raises:
            ParameterError: a state with other tensors or other shapes; nothing is changed.
        """
        mine = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != mine.keys():
            odd = state.keys() ^ mine.keys() if isinstance(state, Mapping) else brief(state)
            raise ParameterError(f"state must hold the tensors of this trainer, got a difference in {brief(odd)}.")
        for name, tensor in mine.items():
            if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
                raise ParameterError(
                    f"state must have {name} {tuple(tensor.shape)} {tensor.dtype}, got {tuple(state[name].shape)} "
                    f"{state[name].dtype}."
                )
        for name, p in self.population.parameters.items():
            p.copy_(state[f"parameter {name}"])
        for i, buffer in enumerate(self.buffers):
            buffer.copy_(state[f"buffer {i}"])
        self.diverged_at = state["diverged_at"].to(self.diverged_at.device).clone()
        self.taken, self.seed, self._epoch = int(state["taken"]), int(state["seed"]), -1

    @ok.takes(path=ok.path)
    def save(self, path: str | Path) -> None:
        """The state as a safetensors file; a file that is there is replaced whole or not at all."""
        from safetensors.torch import save

        write_atomically(Path(path), save({name: t.cpu().contiguous() for name, t in self.state_dict().items()}))

    @ok.takes(path=ok.path)
    def load(self, path: str | Path) -> None:
        """Go on from a file of ``save``.

        Raises:
            ParameterError: a file that is not there, is no safetensors file, or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            state = load(Path(path).read_bytes())
        except (OSError, SafetensorError) as error:
            raise ParameterError(f"path must be a file of Trainer.save, got {brief(str(path))} ({error}).") from error
        self.load_state_dict(state)


@ok.takes(population=ok.has("flat", "backward"), steps=ok.count(0))
def train(population, steps: int, eta, optimiser="sgd", *, record=None, every: int = 1, on_divergence="mask",
          describe=lambda run: "", **options) -> Trajectory:  # fmt: skip
    """A new ``Trainer`` takes ``steps`` steps; its options, then those of ``Trainer.run``."""
    trainer = Trainer(population, eta, optimiser, **options)
    return trainer.run(steps, record=record, every=every, on_divergence=on_divergence, describe=describe)


@ok.takes(trainers=ok.kind((list, tuple), "a list of trainers"), steps=ok.count(0), workers=ok.count())
def side_by_side(trainers: Sequence[Trainer], steps: int, *, workers: int = 2, **options) -> list[Trajectory]:
    """Trainers of populations of different shapes, batch sizes or optimisers in one call, in as many threads as help.

    ``record`` may be a list with one dictionary for each trainer; other options are those of ``Trainer.run``.

    Raises:
        ParameterError: no trainer, the same one twice, or a list of records of another length.
    """
    if not trainers or not all(isinstance(t, Trainer) for t in trainers) or len({*map(id, trainers)}) < len(trainers):
        raise ParameterError(f"trainers must be a list of different trainers, at least one, got {brief(trainers)}.")
    records = options.pop("record", None)
    records = records if isinstance(records, list) else [records] * len(trainers)
    if len(records) != len(trainers):
        raise ParameterError(f"record must have {len(trainers)} entries, one for each trainer, got {len(records)}.")
    run = lambda job: job[0].run(integer("steps", steps, at_least=0), record=job[1], **options)
    return parallel(run, list(zip(trainers, records, strict=True)), workers)
