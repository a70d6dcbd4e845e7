"""A Kokoro with random weights: its times and memory are those of the real one, its voice is not.

``python -m tools.random_kokoro FOLDER`` writes config.json, the weights and voices. Each phoneme
lasts about three frames (75 ms), as in normal speech, and is voiced, so that the sine source works.
Needs the extra ``voice-rtc[kokoro]``.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

_SYMBOLS = (
    ';:,.!?—…"()“” \u0303ʣʥʦʨᵝ\uab67AIOQSTWYᵊabcdefhijklmnopqrstuvwxyz'
    "ɑɐɒæβɔɕçɖðʤəɚɛɜɟɡɥɨɪʝɯɰŋɳɲɴøɸθœɹɾɻʁɽʂʃʈʧʊʋʌɣɤχʎʒʔˈˌːʰʲ↓→↗↘ᵻ"
)
_FRAMES, _MOST_FRAMES = 3.0, 50
_PITCH_HZ = 150.0
_VARIETY = 0.4
"""Standard deviation of the logarithm of a duration."""
_STYLES = 510
VOICES = ("af_heart", "am_adam", "bf_emma")


def config(*, small: bool) -> dict[str, Any]:
    """config.json of hexgrad/Kokoro-82M; ``small``: one layer of text, the decoder as it is."""
    return {
        "istftnet": {
            "upsample_kernel_sizes": [20, 12],
            "upsample_rates": [10, 6],
            "gen_istft_hop_size": 5,
            "gen_istft_n_fft": 20,
            "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            "resblock_kernel_sizes": [3, 7, 11],
            "upsample_initial_channel": 512,
        },
        "dim_in": 64,
        "dropout": 0.2,
        "hidden_dim": 512,
        "max_conv_dim": 512,
        "max_dur": _MOST_FRAMES,
        "multispeaker": True,
        "n_layer": 1 if small else 3,
        "n_mels": 80,
        "n_token": 178,
        "style_dim": 128,
        "text_encoder_kernel_size": 5,
        "plbert": {
            "hidden_size": 48 if small else 768,
            "num_attention_heads": 12,
            "intermediate_size": 64 if small else 2048,
            "max_position_embeddings": 512,
            "num_hidden_layers": 2 if small else 12,
            "dropout": 0.1,
        },
        "vocab": {symbol: index for index, symbol in enumerate(_SYMBOLS, start=1)},
    }


def write(folder: Path, *, small: bool = False, seed: int = 0) -> None:
    """Make ``folder`` what tts.model may name."""
    import torch
    from kokoro import KModel

    warnings.simplefilter("ignore")  # kokoro uses what torch deprecates
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(small=small)), encoding="utf-8")
    torch.manual_seed(seed)
    nothing = folder / "kokoro-v1_0.pth"
    torch.save({}, nothing)
    model = KModel("hexgrad/Kokoro-82M", str(folder / "config.json"), str(nothing))
    with torch.no_grad():
        _set_durations(model.eval())
        model.predictor.F0_proj.bias.fill_(_PITCH_HZ)
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.InstanceNorm1d)):
            # As after training: no two channels alike.
            torch.nn.init.normal_(norm.weight, 1.0, 0.1)
            torch.nn.init.normal_(norm.bias, 0.0, 0.1)
    parts = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")
    torch.save({part: getattr(model, part).state_dict() for part in parts}, nothing)
    for voice in VOICES:
        torch.save(torch.randn(_STYLES, 1, 256), folder / "voices" / f"{voice}.pt")


def _set_durations(model: Any) -> None:
    """Phonemes of about three frames, of several durations."""
    import torch

    seen = []
    projection = model.predictor.duration_proj
    layer = projection.linear_layer
    share = _FRAMES / _MOST_FRAMES
    # All units alike, or their sum would be the same for every phoneme.
    direction = layer.weight[:1].clone()
    layer.weight.zero_()
    layer.bias.fill_(math.log(share / (1 - share)))
    hook = projection.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    for start in range(1, 100, 16):
        text = torch.arange(start, start + 16)[None]
        model.forward_with_tokens(text, torch.randn(1, 256), 1.0)
    hook.remove()
    found = torch.cat(seen) @ direction[0]
    layer.weight.copy_(direction.expand_as(layer.weight) * (_VARIETY / found.std()))
    layer.bias.sub_(_VARIETY * found.mean() / found.std())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="one layer of text, for tests")
    arguments = parser.parse_args()
    write(arguments.folder, small=arguments.small)


if __name__ == "__main__":
    main()
