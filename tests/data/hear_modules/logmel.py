"""A small HEAR module: mean and deviation over time of 64 log-mel bands, at 16 kHz.

Scenes are whole clips; timestamp embeddings the bands alone, 20 a second.
"""

import torch

BANDS, FFT, HOP = 64, 1024, 160
STEP = 5  # frames of 10 ms in a timestamp embedding


class Model(torch.nn.Module):
    sample_rate = 16000
    scene_embedding_size = 2 * BANDS
    timestamp_embedding_size = BANDS

    def __init__(self):
        super().__init__()
        mel = torch.linspace(0, 2595 * torch.log10(torch.tensor(1 + 8000 / 700)), BANDS + 2)
        edges = 700 * (10 ** (mel / 2595) - 1)
        bins = torch.linspace(0, 8000, FFT // 2 + 1)[:, None]
        rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        self.register_buffer("filters", torch.minimum(rise, fall).clamp(min=0))
        self.register_buffer("window", torch.hann_window(FFT))

    def forward(self, audio):
        """(n, samples) -> (n, frames, bands), a frame each 10 ms."""
        if audio.dim() == 3:  # (n, samples, channels), as evaluators hand it over
            audio = audio.mean(dim=2)
        spectrum = torch.stft(
            audio, FFT, HOP, window=self.window, pad_mode="constant", return_complex=True
        )
        return (spectrum.abs().square().transpose(1, 2) @ self.filters + 1e-6).log()


def load_model(model_file_path=""):
    return Model()


def get_scene_embeddings(audio, model):
    frames = model(audio)
    return torch.cat([frames.mean(dim=1), frames.std(dim=1, correction=0)], dim=1)


def get_timestamp_embeddings(audio, model):
    frames = model(audio)[:, : audio.shape[1] // HOP]
    steps = max(1, frames.shape[1] // STEP)
    embeddings = torch.stack([part.mean(dim=1) for part in frames.tensor_split(steps, 1)], dim=1)
    centres = (torch.arange(steps) * STEP + (STEP - 1) / 2) * 10.0
    return embeddings, centres.clamp(max=1000 * audio.shape[1] / 16000).expand(len(audio), -1)
