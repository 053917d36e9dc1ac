"""What a training run would take on other machines: time, and bytes of its state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPT:
    """The sizes of a transformer language model; `sequence` and `vocabulary` in tokens."""

    layers: int
    hidden: int
    heads: int
    sequence: int = 2048
    vocabulary: int = 51200

    @property
    def parameters(self) -> float:
        """The number of parameters. Source: Narayanan et al. (2021), equation 2."""
        h = self.hidden
        return self.layers * (12 * h * h + 13 * h) + (self.vocabulary + self.sequence) * h

    def flops(self, batch: int) -> float:
        """Return the operations of an update on `batch` sequences, each layer's forward
        run twice.

        Source: Narayanan et al. (2021), equation 3.
        """
        s, h, ends = (
            self.sequence,
            self.hidden,
            self.vocabulary / (16 * self.layers * self.hidden),
        )
        return 96 * batch * s * self.layers * h * h * (1 + s / (6 * h) + ends)


@dataclass(frozen=True)
class Layout:
    """How `devices` share out a model: in `tensor` pieces of each layer times `pipeline`
    stages.

    The rest of the devices are data parallel, at ZeRO stage `zero`. `batch` is in
    sequences, over all devices. `chunks` > 1 interleaves the stages. Raises ValueError
    where the numbers do not divide each other.
    """

    devices: int
    batch: int
    tensor: int = 1
    pipeline: int = 1
    zero: int = 0
    micro_batch: int = 1
    chunks: int = 1

    def __post_init__(self) -> None:
        model = self.tensor * self.pipeline
        if self.devices % model or self.batch % (
            self.devices // model * self.micro_batch
        ):
            raise ValueError(
                f"{self}: devices must be a multiple of tensor x pipeline, and batch of the "
                "replicas x micro_batch"
            )
        if self.chunks > 1 and (self.pipeline == 1 or self.micro_batches % self.pipeline):
            raise ValueError(
                f"{self}: chunks > 1 needs several stages, and micro-batches that are a multiple "
                f"of them, not {self.micro_batches}"
            )

    @property
    def replicas(self) -> int:
        """The number of copies of the model."""
        return self.devices // (self.tensor * self.pipeline)

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches that each copy works through in an update."""
        return self.batch // (self.replicas * self.micro_batch)


@dataclass(frozen=True)
class Machine:
    """A cluster: speeds a device in FLOP/s and bytes/s, as on the data sheet.

    `fast` joins the devices of one node, `slow` the nodes. `efficiency` is the share of
    `flops` that the kernels reach, `reached` the share of the links' speed. The defaults
    are an 80 GB A100, with the two shares read off one published run each.
    """

    flops: float = 312e12
    fast: float = 300e9
    slow: float = 25e9
    node: int = 8
    efficiency: float = 0.5
    reached: float = 0.62


def state_bytes(parameters: float, devices: int, stage: int) -> float:
    """Return the bytes a device for parameters, gradients and Adam's state in mixed
    precision.

    Per parameter 2 (16-bit weight) + 2 (16-bit gradient) + 12 (32-bit weight, mean,
    variance); ZeRO divides the last by `devices` at stage 1, the second too at 2, all at
    3. Raises ValueError for another stage. Source: Rajbhandari et al. (2020). Invariant:
    stage 0 does not depend on `devices`.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage={stage!r}: choose 0, 1, 2 or 3")
    kept = [1 if stage < least else devices for least in (3, 2, 1)]
    return sum(
        bytes_ * parameters / share
        for bytes_, share in zip((2, 2, 12), kept, strict=True)
    )


def step_time(
    model: GPT, layout: Layout, machine: Machine = Machine()
) -> dict[str, float]:  # noqa: B008
    """Return the seconds of one update: "compute", "tensor", "pipeline", "bubble", "data",
    and their "total".

    Tensor: six all-reduces of a layer's output a micro-batch, two of them for the second
    forward pass. Pipeline: each chunk hands a layer's output on, and its gradient back,
    for each micro-batch, between nodes; each of the `tensor` pieces sends its part of it,
    and nothing hides it. Data: a ring all-reduce of 16-bit gradients after the last
    backward pass; at ZeRO stage 3, half as much again for each micro-batch, hidden behind
    the computing as far as that lasts. So more chunks shrink the bubble and cost messages.
    """
    t, p, d, m = layout.tensor, layout.pipeline, layout.replicas, layout.micro_batches
    compute = (
        model.flops(layout.batch) / layout.devices / (machine.flops * machine.efficiency)
    )
    output = 2 * layout.micro_batch * model.sequence * model.hidden
    link = machine.reached * (machine.fast if t <= machine.node else machine.slow)
    tensor = 6 * model.layers / p * m * output * 2 * (t - 1) / t / link
    inside = t * p <= machine.node  # a whole copy of the model on one node
    link = machine.reached * (machine.fast if inside else machine.slow)
    pipeline = 2 * m * layout.chunks * output / t / link if p > 1 else 0.0
    link = machine.reached * (
        machine.fast if layout.devices <= machine.node else machine.slow
    )
    data = 2 * (d - 1) / d * 2 * model.parameters / (t * p) / link
    if layout.zero == 3:
        data = max(0.0, 1.5 * m * data - compute)
    bubble = (p - 1) / (layout.chunks * m) * (compute + tensor)
    parts = {"compute": compute, "tensor": tensor, "pipeline": pipeline}
    parts |= {"bubble": bubble, "data": data}
    return parts | {"total": sum(parts.values())}
