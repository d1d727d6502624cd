"""What GRAM-M's encoder costs, as ratios taken in one run.

    python benchmarks/mamba.py                # CPU time, on one thread
    python benchmarks/mamba.py --only peer    # against transformers: gram-hear[benchmark]

Weights are random. Ratios are of alternating runs: median, and smallest to largest. mamba-ssm's
kernels are measured by benchmarks/gpu.py.
"""

import math
import statistics
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from measure import Call, alternate, parser_of
from torch import Tensor

from gram_hear.config import EncoderConfig, Mamba1Config, Mamba2Config, TransformerConfig
from gram_hear.extras import install_command
from gram_hear.nn.encoder import make_encoder
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mamba import MambaEncoder
from gram_hear.nn.state_space import ssd

CHUNKS = (32, 64, 128, 256)
PARTS = ("transformer", "peer", "mamba1", "growth", "chunk")
LENGTHS = (200, 400, 800, 1600, 3200, 6400)


def report(name: str, over: list[float], under: list[float], wanted: str = "") -> None:
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    median = statistics.median(ratios)
    print(f"{name:<62}{median:7.2f}   ({ratios[0]:.2f} to {ratios[-1]:.2f})   {wanted}", flush=True)


def new_encoder(config: EncoderConfig) -> torch.nn.Module:
    encoder = make_encoder(config).eval()
    initialise(encoder, seed=0)
    return encoder


@torch.inference_mode()
def against_transformer(windows: int, repeats: int) -> None:
    ours, theirs = new_encoder(Mamba2Config()), new_encoder(TransformerConfig())
    tokens = torch.randn(windows, 201, 768)
    times = alternate({"ours": lambda: ours(tokens), "theirs": lambda: theirs(tokens)}, repeats)
    name = f"base, {windows} x 201 tokens: GRAM-M time / GRAM-T time"
    report(name, times["ours"], times["theirs"], "wanted: at most 1.8")


@torch.inference_mode()
def against_mamba1(windows: int, repeats: int) -> None:
    """Compare the two mixers in stacks of 6 layers; both grow with depth alike."""
    ours, slow = new_encoder(Mamba2Config(depth=6)), new_encoder(Mamba1Config(depth=6))
    tokens = torch.randn(windows, 201, 768)
    times = alternate({"ours": lambda: ours(tokens), "slow": lambda: slow(tokens)}, repeats)
    name = f"6 layers, {windows} x 201 tokens: Mamba-1 time / Mamba-2 time"
    report(name, times["slow"], times["ours"])
    seconds = statistics.median(times["ours"]) * 4 / windows / 2
    print(f"Mamba-2 base: {seconds:.2f} s of CPU time for a second of sound, the encoder alone")


def make_peer(encoder: MambaEncoder, config: Mamba2Config) -> torch.nn.Module:
    """Return the Mamba-2 stack of `transformers`, on its plain path, with our weights."""
    from transformers import Mamba2Config as PeerConfig
    from transformers import Mamba2Model

    peer = Mamba2Model(
        PeerConfig(
            vocab_size=1,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            state_size=config.state,
            head_dim=config.head_width,
            num_heads=config.heads,
            expand=config.expansion,
            n_groups=1,
            conv_kernel=config.convolution,
            use_conv_bias=True,
            residual_in_fp32=True,
            layer_norm_epsilon=1e-5,
        )
    ).eval()
    tensors = {
        name.replace("blocks.", "layers."): tensor for name, tensor in encoder.state_dict().items()
    }
    tensors["norm_f.weight"] = tensors.pop("norm.weight")
    missing, unexpected = peer.load_state_dict(tensors, strict=False)
    assert (list(missing), list(unexpected)) == (["embeddings.weight"], []), (missing, unexpected)
    return peer


@torch.inference_mode()
def against_peer(windows: int, repeats: int) -> None:
    config = Mamba2Config()
    ours = new_encoder(config)
    peer = make_peer(ours, config)
    tokens = torch.randn(windows, 201, config.width)

    def theirs() -> Tensor:
        return peer(inputs_embeds=tokens, use_cache=False).last_hidden_state

    difference = (ours(tokens) - theirs()).abs().max().item()
    print(f"largest difference from transformers, same weights: {difference:.1e}")
    assert difference < 1e-3
    times = alternate({"ours": lambda: ours(tokens), "theirs": theirs}, repeats)
    name = f"base, {windows} x 201 tokens: transformers time / ours"
    report(name, times["theirs"], times["ours"], "wanted: at least 1.8")


@torch.inference_mode()
def growth(repeats: int) -> None:
    """Print the exponent of time over tokens, by least squares on the logarithms."""
    ours = new_encoder(Mamba2Config(depth=2))
    inputs = {str(length): torch.randn(1, length, 768) for length in LENGTHS}
    calls = {name: lambda tokens=tokens: ours(tokens) for name, tokens in inputs.items()}
    times = alternate(calls, repeats)
    medians = [statistics.median(each) for each in times.values()]
    x, y = ([math.log(each) for each in values] for values in (LENGTHS, medians))
    exponent = statistics.linear_regression(x, y).slope
    each = ", ".join(
        f"{length}: {1e6 * m / length:.0f}" for length, m in zip(LENGTHS, medians, strict=True)
    )
    print(f"2 layers, microseconds for a token: {each}; exponent of the cost {exponent:.3f}")


@torch.inference_mode()
def cheapest_chunk(windows: int, repeats: int) -> None:
    """Print the time of the scan alone, by chunk, over that of the cheapest."""
    config = Mamba2Config()
    for length in (201, 1600):
        x = torch.randn(windows, length, config.heads, config.head_width)
        dt = F.softplus(torch.randn(windows, length, config.heads) - 3)
        a, d = -torch.linspace(1, 16, config.heads), torch.ones(config.heads)
        b, c = torch.randn(2, windows, length, config.state)
        times = alternate(
            {
                str(chunk): lambda chunk=chunk, inputs=(x, dt, a, b, c, d): ssd(*inputs, chunk)
                for chunk in CHUNKS
            },
            repeats,
        )
        medians = {chunk: statistics.median(each) for chunk, each in times.items()}
        least = min(medians.values())
        print(
            f"{windows} x {length} tokens, scan alone: "
            + ", ".join(f"chunk {chunk} {each / least:.2f}" for chunk, each in medians.items())
            + f" (1.00 = {1000 * least / windows:.1f} ms for a window)",
            flush=True,
        )


def main() -> None:
    parser = parser_of(__doc__, repeats=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts")
    parser.add_argument("--windows", type=int, default=1, help="windows of 201 tokens in a batch")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    if find_spec("transformers") is None:
        print(f"peer is left out: it needs {install_command('benchmark')}")
        arguments.only = [part for part in arguments.only or PARTS if part != "peer"]
    parts: dict[str, Call] = {
        "transformer": lambda: against_transformer(arguments.windows, arguments.repeats),
        "peer": lambda: against_peer(arguments.windows, arguments.repeats),
        "mamba1": lambda: against_mamba1(arguments.windows, arguments.repeats),
        "growth": lambda: growth(arguments.repeats),
        "chunk": lambda: cheapest_chunk(arguments.windows, arguments.repeats),
    }
    for name, part in parts.items():
        if arguments.only is None or name in arguments.only:
            part()


if __name__ == "__main__":
    main()
