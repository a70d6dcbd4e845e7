"""Kokoro over padded batches: what is behind a text's end does not change how it sounds.

The stock `kokoro.KModel` takes one text at a time, of any length, because everything in it would
hear the padding: the LSTMs that run backwards, the InstanceNorms (mean over time), the convolutions
and the STFT's reflection at the end. But texts of one length are rare, and a CUDA graph has one
shape. Here the same weights do the same sums with the padding kept out:

    LSTM            an input more, 1 in padding, shuts the input gate: its state stays exactly 0
                    until the text begins, from either side
    attention       a mask
    InstanceNorm    mean and variance over what is there; the rest of its output is 0
    convolutions    their input is 0 in padding, as beyond the end of an unpadded one
    STFT            reflects at each text's own end; the inverse adds up only frames that exist
    sine source     a pitch of 0 in padding leaves its phase where it was

Text comes to sound in two halves, as lengths are known only after the first: `of_text` gives the
duration of each phoneme, `stretched` repeats them, `sound` makes the audio. The halves read nothing
back from the device, so that they can be captured as CUDA graphs (see `kokoro_halves`).

On an H100 with float32 (TF32 in the convolutions), a clause of four words alone: stock 49 ms, here
step by step 34 ms, as graphs 9 to 11 ms. In graphs 64 frames (1.6 s) take 6.1 ms in 1,300 kernels,
256 frames 10.8 ms; four rows at once 1.7 and 2.4 times as long as one. bfloat16 gained nothing.

Follows kokoro 0.9.4: model.py, modules.py and istftnet.py, names included; tests/engines/
test_kokoro_padded.py compares with those. Two steps of theirs have no effect and are left out: the
random initial phase, which their resampling drops, and the modulo before it, taken once a frame
instead of once a sample.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Tensor = Any
"""A ``torch.Tensor``: most installations have no torch, nor its types."""

FRAME_SAMPLES = 600
"""Of one frame of the durations, 25 ms at 24 kHz."""
_RATE_HZ = 24_000
_PROSODY = slice(128, None)
_TIMBRE = slice(None, 128)
"""The halves of a style."""
_SHUT = -1e4
"""Added to an LSTM's input gate in padding; its sigmoid is 0 in float32."""


@dataclass(frozen=True, slots=True)
class There:
    """Which part of each row is there, at one rate."""

    mask: Tensor
    """1.0 or 0.0, shape (batch, 1, time)."""
    share: Tensor
    """Of the time, shape (batch, 1, 1)."""


class Extent:
    """Which part of each row is there, at every rate of the model.

    ``lengths`` in steps of ``width``; None means that all rows fill it, and nothing is masked.
    """

    def __init__(self, lengths: Tensor | None, width: int) -> None:
        self.lengths = lengths
        self._width = width
        self._there: dict[tuple[int, int], There] = {}

    def there(self, scale: int = 1, more: int = 0) -> There | None:
        """At a rate where a row has (its length x scale + more) steps."""
        if self.lengths is None:
            return None
        if (scale, more) not in self._there:
            at = torch.arange(self._width * scale + more, device=self.lengths.device)
            mask = (at < (self.lengths * scale + more).unsqueeze(1)).unsqueeze(1).float()
            self._there[scale, more] = There(mask, mask.mean(dim=-1, keepdim=True))
        return self._there[scale, more]

    def keep(self, x: Tensor, scale: int = 1, more: int = 0) -> Tensor:
        """``x`` (batch, channels, time) with zeros in padding."""
        there = self.there(scale, more)
        return x if there is None else x * there.mask.to(x.dtype)

    def padding(self, x: Tensor) -> Tensor:
        """For the LSTMs: 1.0 in padding, shape (batch, width, 1)."""
        there = self.there()
        if there is None:
            return x.new_zeros(x.shape[0], x.shape[1], 1)
        return 1.0 - there.mask.transpose(1, 2)


class PaddedLstm:
    """A bidirectional ``nn.LSTM`` of one layer that does not see padding on either side."""

    def __init__(self, stock: Any, device: Any) -> None:
        lstm = nn.LSTM(
            stock.input_size + 1, stock.hidden_size, batch_first=True, bidirectional=True
        )
        shut = torch.zeros(4 * stock.hidden_size, 1)
        shut[: stock.hidden_size] = _SHUT  # gates are in the order input, forget, cell, output
        weights = {name: weight.cpu() for name, weight in stock.state_dict().items()}
        for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
            weights[name] = torch.cat([weights[name], shut], dim=1)
        lstm.load_state_dict(weights)
        self._lstm = lstm.to(device).eval()
        self.channels: int = stock.input_size

    def __call__(self, x: Tensor, extent: Extent) -> Tensor:
        """(batch, time, channels) to (batch, time, 2 x hidden)."""
        out, _ = self._lstm(torch.cat([x, extent.padding(x)], dim=-1))
        return out


class PaddedKokoro:
    """The weights of a `kokoro.KModel`, which must not be used any more."""

    def __init__(self, model: Any, device: Any) -> None:
        """``model`` in eval mode; computes in float32 until told otherwise by `use`."""
        _fold_weight_norms(model)
        self.device = device
        self._bert = model.bert.to(device)
        self._bert_encoder = model.bert_encoder.to(device)
        self._predictor = predictor = model.predictor.to(device)
        self._text_encoder = model.text_encoder.to(device)
        lstms = predictor.text_encoder.lstms
        self._durations = [
            (PaddedLstm(lstm, device), norm)
            for lstm, norm in zip(lstms[0::2], lstms[1::2], strict=True)
        ]
        self._duration_lstm = PaddedLstm(predictor.lstm, device)
        self._shared_lstm = PaddedLstm(predictor.shared, device)
        self._text_lstm = PaddedLstm(self._text_encoder.lstm, device)
        generator = model.decoder.generator
        self._stft = _Stft(generator.stft.filter_length, generator.stft.hop_length, device)
        # The source stays in float32: its phases are sums over the whole text.
        self._source = generator.m_source.to(device)
        del generator.m_source
        self._exact = model.decoder.to(device)
        self._decoder = self._exact
        self.dtype = torch.float32

    @property
    def channels(self) -> tuple[int, int]:
        """Of prosody and text."""
        return self._shared_lstm.channels, self._text_encoder.lstm.input_size

    def use(self, dtype: Any) -> None:
        """Compute the decoder, which takes nearly all the time, in ``dtype``."""
        self.dtype = dtype
        exact = dtype == torch.float32
        self._decoder = self._exact if exact else copy.deepcopy(self._exact).to(dtype)

    # ---------------------------------------------------------------------------- text, durations

    def of_text(
        self, ids: Tensor, lengths: Tensor | None, styles: Tensor, speeds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is to be said and for how long.

        ``ids`` (batch, tokens) int64, ``lengths`` (batch) in tokens, ``styles`` (batch, 256),
        ``speeds`` (batch). Returns prosody (batch, tokens, 640), text (batch, tokens, 512) and the
        frames of each token (batch, tokens) int64.
        """
        extent = Extent(lengths, ids.shape[1])
        style = styles[:, _PROSODY]
        spread = style.unsqueeze(1).expand(-1, ids.shape[1], -1)
        x = torch.cat([self._bert_encoder(self._albert(ids, extent)), spread], dim=-1)
        for lstm, norm in self._durations:
            x = torch.cat([norm(lstm(x, extent), style), spread], dim=-1)
        duration = self._predictor.duration_proj(self._duration_lstm(x, extent))
        frames = torch.sigmoid(duration).sum(dim=-1) / speeds.unsqueeze(1)
        return x, self._text(ids, extent), torch.round(frames).clamp(min=1).long()

    def _albert(self, ids: Tensor, extent: Extent) -> Tensor:
        """transformers' AlbertModel without its look at the mask, for which it asks the device."""
        bert = self._bert
        there = extent.there()
        allowed = None if there is None else there.mask.bool().unsqueeze(1)
        x = bert.encoder.embedding_hidden_mapping_in(bert.embeddings(input_ids=ids))
        config = bert.config
        for number in range(config.num_hidden_layers):
            group = number * config.num_hidden_groups // config.num_hidden_layers
            for layer in bert.encoder.albert_layer_groups[group].albert_layers:
                x = _albert_layer(layer, x, allowed, config.num_attention_heads)
        return x

    def _text(self, ids: Tensor, extent: Extent) -> Tensor:
        encoder = self._text_encoder
        x = extent.keep(encoder.embedding(ids).transpose(1, 2))
        for block in encoder.cnn:
            x = extent.keep(block(x))
        return self._text_lstm(x.transpose(1, 2), extent)

    def stretched(self, x: Tensor, tokens: Tensor) -> Tensor:
        """``x`` (batch, tokens, channels) by frames: ``tokens`` (batch, frames) says which."""
        return torch.gather(x, 1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    # ---------------------------------------------------------------------------------- the sound

    def sound(
        self, prosody: Tensor, text: Tensor, lengths: Tensor | None, styles: Tensor
    ) -> Tensor:
        """int16 (batch, frames x 600) from what `stretched` gave; noise behind a row's end.

        ``lengths`` (batch) in frames.
        """
        extent = Extent(lengths, prosody.shape[1])
        pitch, energy = self._contours(prosody, styles[:, _PROSODY], extent)
        timbre = styles[:, _TIMBRE].to(self.dtype)
        har = self._harmonics(pitch, extent)
        asr = text.transpose(1, 2).to(self.dtype)
        x = self._decoded(asr, pitch.to(self.dtype), energy.to(self.dtype), timbre, extent)
        spectrum = self._generated(x, har.to(self.dtype), timbre, extent).float()
        bins = spectrum.shape[1] // 2
        magnitude, phase = torch.exp(spectrum[:, :bins]), torch.sin(spectrum[:, bins:])
        audio = self._stft.inverse(magnitude, phase, extent.there(self._stft.scale, 1))
        return (audio.nan_to_num().clamp(-1.0, 1.0) * 32767).to(torch.int16)

    def _contours(self, prosody: Tensor, style: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        predictor = self._predictor
        shared = self._shared_lstm(prosody, extent).transpose(1, 2)
        found = []
        for blocks, projection in (
            (predictor.F0, predictor.F0_proj),
            (predictor.N, predictor.N_proj),
        ):
            x, scale = shared, 1
            for block in blocks:
                x, scale = _style_block(block, x, style, extent, scale)
            found.append(extent.keep(projection(x), scale).squeeze(1))
        pitch, energy = found
        return pitch, energy

    def _harmonics(self, pitch: Tensor, extent: Extent) -> Tensor:
        """Magnitude and phase of the source: sines at the pitch and its multiples, or noise."""
        source, sines = self._source, self._source.l_sin_gen
        up = sines.upsample_scale
        multiples = torch.arange(1, sines.dim + 1, device=pitch.device, dtype=torch.float32)
        turns = (pitch.unsqueeze(1) * multiples.view(1, -1, 1) / _RATE_HZ) % 1
        angle = torch.cumsum(turns, dim=2) * 2 * math.pi
        angle = F.interpolate(angle * up, scale_factor=float(up), mode="linear")
        wave = torch.sin(angle).transpose(1, 2) * sines.sine_amp
        voiced = (pitch > sines.voiced_threshold).float().repeat_interleave(up, dim=1).unsqueeze(2)
        amount = voiced * sines.noise_std + (1 - voiced) * sines.sine_amp / 3
        wave = wave * voiced + amount * torch.randn_like(wave)
        merged = source.l_tanh(source.l_linear(wave)).squeeze(-1)
        ends = None if extent.lengths is None else extent.lengths * FRAME_SAMPLES
        return extent.keep(self._stft.transform(merged, ends), self._stft.scale, 1)

    def _decoded(
        self, asr: Tensor, pitch: Tensor, energy: Tensor, style: Tensor, extent: Extent
    ) -> Tensor:
        decoder = self._decoder
        f0 = decoder.F0_conv(pitch.unsqueeze(1))
        n = decoder.N_conv(energy.unsqueeze(1))
        x, scale = _style_block(decoder.encode, torch.cat([asr, f0, n], 1), style, extent, 1)
        beside = torch.cat([decoder.asr_res(asr), f0, n], 1)
        for block in decoder.decode:
            x = torch.cat([x, beside], 1) if scale == 1 else x
            x, scale = _style_block(block, x, style, extent, scale)
        return x

    def _generated(self, x: Tensor, har: Tensor, style: Tensor, extent: Extent) -> Tensor:
        generator = self._decoder.generator
        scale, more = 2, 0
        for step in range(generator.num_upsamples):
            x = extent.keep(F.leaky_relu(x, 0.1), scale, more)
            scale *= generator.ups[step].stride[0]
            x = generator.ups[step](x)
            if step == generator.num_upsamples - 1:
                x, more = generator.reflection_pad(x), 1
            source = generator.noise_convs[step](har)
            x = x + _resblock(generator.noise_res[step], source, style, extent, scale, more)
            kernels = generator.num_kernels
            blocks = generator.resblocks[step * kernels : (step + 1) * kernels]
            made = [_resblock(block, x, style, extent, scale, more) for block in blocks]
            x = torch.stack(made).mean(dim=0)
        return generator.conv_post(extent.keep(F.leaky_relu(x), scale, more))


class _Stft:
    """torch.stft and istft with a Hann window, but of rows that end where they end."""

    def __init__(self, length: int, hop: int, device: Any) -> None:
        self._length, self._hop = length, hop
        self.scale = FRAME_SAMPLES // hop
        """Frames of it in a frame of the durations."""
        n, half = np.arange(length), length // 2
        turns = 2 * np.pi * np.outer(np.arange(half + 1), n) / length
        share = np.full((half + 1, 1), 2.0)
        share[0] = share[half] = 1.0
        inverse = np.concatenate([np.cos(turns) * share, -np.sin(turns) * share]) / length
        self._window = torch.hann_window(length, device=device)
        inverse *= 0.5 - 0.5 * np.cos(2 * np.pi * n / length)
        self._inverse = torch.from_numpy(inverse.astype(np.float32)).to(device)

    def transform(self, x: Tensor, ends: Tensor | None) -> Tensor:
        """(batch, samples) to magnitudes and phases (batch, 2 x bins, frames).

        Reflected at both ends, each row at its own of ``ends`` (samples). By an FFT, as the stock
        model does it: about its ends a reflected signal has phases of 0 or pi, and the sign of that
        pi is one of rounding.
        """
        frames = self._reflected(x, ends).unfold(-1, self._length, self._hop)
        spectrum = torch.fft.rfft(frames * self._window)
        return torch.cat([torch.abs(spectrum), torch.angle(spectrum)], -1).transpose(1, 2)

    def _reflected(self, x: Tensor, ends: Tensor | None) -> Tensor:
        half = self._length // 2
        if ends is None:
            return F.pad(x.unsqueeze(1), (half, half), mode="reflect").squeeze(1)
        at = torch.arange(-half, x.shape[1] + half, device=x.device).abs().unsqueeze(0)
        last = (ends - 1).unsqueeze(1)
        at = torch.where(at > last, 2 * last - at, at).clamp(0, x.shape[1] - 1)
        return torch.gather(x, 1, at.expand(x.shape[0], -1))

    def inverse(self, magnitude: Tensor, phase: Tensor, there: There | None) -> Tensor:
        """(batch, bins, frames) to (batch, (frames - 1) x hop), of the frames that are there."""
        half = self._length // 2
        parts = torch.cat([magnitude * torch.cos(phase), magnitude * torch.sin(phase)], 1)
        parts = parts.transpose(1, 2)
        pieces = (parts @ self._inverse).transpose(1, 2)
        frames = pieces.new_ones(1, 1, pieces.shape[-1]) if there is None else there.mask
        sound = self._overlapped(pieces * frames)
        weight = self._overlapped(self._window.square().view(1, -1, 1) * frames)
        return (sound / weight.clamp(min=1e-11))[:, half:-half]

    def _overlapped(self, pieces: Tensor) -> Tensor:
        """(batch, length, frames) to (batch, samples): added up where they lie."""
        samples = (pieces.shape[-1] - 1) * self._hop + self._length
        added = F.fold(pieces, (1, samples), (1, self._length), stride=(1, self._hop))
        return added.view(pieces.shape[0], samples)


def _albert_layer(layer: Any, x: Tensor, allowed: Tensor | None, heads: int) -> Tensor:
    attention = layer.attention

    def split(projection: Any) -> Tensor:
        return projection(x).unflatten(-1, (heads, -1)).transpose(1, 2)

    found = F.scaled_dot_product_attention(
        split(attention.query), split(attention.key), split(attention.value), attn_mask=allowed
    )
    y = attention.LayerNorm(x + attention.dense(found.transpose(1, 2).flatten(2)))
    fed = layer.ffn_output(layer.activation(layer.ffn(y)))
    return layer.full_layer_layer_norm(fed + y)


def _normed(adain: Any, x: Tensor, style: Tensor, there: There | None) -> Tensor:
    """AdaIN1d, with its mean and variance over what is there and 0 elsewhere."""
    if there is None:
        gain, bias = adain.fc(style).unsqueeze(-1).chunk(2, dim=1)
        return torch.addcmul(bias, 1 + gain, adain.norm(x))
    gain, bias = _gain_and_bias(adain, x, style, there)
    return (torch.addcmul(bias, gain, x.float()) * there.mask).to(x.dtype)


def _normed_snake(
    adain: Any, x: Tensor, style: Tensor, there: There | None, alpha: Tensor
) -> Tensor:
    """`_normed` and then Snake, which leaves 0 at 0: half of all that the decoder does."""
    if there is None or not x.is_cuda:
        y = _normed(adain, x, style, there)
        return y + (1 / alpha) * torch.sin(alpha * y).square()
    gain, bias = _gain_and_bias(adain, x, style, there)
    return _fused("snake")(x.float(), gain, bias, there.mask, alpha.float()).to(x.dtype)


def _gain_and_bias(adain: Any, x: Tensor, style: Tensor, there: There) -> tuple[Tensor, Tensor]:
    """What AdaIN1d multiplies ``x`` with, and adds; (batch, channels, 1), float32.

    The statistics of what is there, from those with zeros in the rest: in as few passes over the
    data as possible, for passes are what it costs.
    """
    gain, bias = adain.fc(style).float().unsqueeze(-1).chunk(2, dim=1)
    weight, offset = (each.float().view(1, -1, 1) for each in (adain.norm.weight, adain.norm.bias))
    variance0, mean0 = torch.var_mean(x.float() * there.mask, dim=-1, correction=0, keepdim=True)
    given = (gain, weight, variance0, mean0, there.share)
    if x.is_cuda:
        scale = _fused("scale")(*given)
        return scale, _fused("shift")(bias, gain, offset, scale, mean0, there.share)
    scale = _scale(*given, adain.norm.eps)
    return scale, bias + (1 + gain) * offset - mean0 / there.share * scale


def _scale(
    gain: Tensor, weight: Tensor, variance0: Tensor, mean0: Tensor, share: Tensor, eps: float
) -> Tensor:
    mean = mean0 / share
    variance = (variance0 + mean0.square()) / share - mean.square()
    return (1 + gain) * weight * torch.rsqrt(variance.clamp(min=0.0) + eps)


_KERNELS = {
    "snake": """
        template <typename T> T snake(T x, T gain, T bias, T mask, T alpha) {
            const T y = (x * gain + bias) * mask;
            const T s = sinf(alpha * y);
            return y + s * s / alpha;
        }""",
    "scale": """
        template <typename T> T scale(T gain, T weight, T variance0, T mean0, T share) {
            const T mean = mean0 / share;
            const T variance = (variance0 + mean0 * mean0) / share - mean * mean;
            return (T(1) + gain) * weight * rsqrtf(fmaxf(variance, T(0)) + T(1e-5));
        }""",
    "shift": """
        template <typename T> T shift(T bias, T gain, T offset, T scale, T mean0, T share) {
            return bias + (T(1) + gain) * offset - mean0 / share * scale;
        }""",
}
"""On float32, element by element: one pass in place of eight, one small kernel in place of ten.
NVRTC compiles them at their first use. 1e-5 is InstanceNorm1d's epsilon."""


@functools.cache
def _fused(name: str) -> Any:
    # Private by its name, documented all the same: see torch.cuda.jiterator.
    return torch.cuda.jiterator._create_jit_fn(_KERNELS[name])  # noqa: SLF001


def _style_block(
    block: Any, x: Tensor, style: Tensor, extent: Extent, scale: int
) -> tuple[Tensor, int]:
    """AdainResBlk1d, and the scale of its output."""
    doubles = block.upsample_type != "none"
    after = 2 * scale if doubles else scale
    y = block.pool(block.actv(_normed(block.norm1, x, style, extent.there(scale))))
    y = block.conv1(extent.keep(y, after) if doubles else y)
    y = block.conv2(block.actv(_normed(block.norm2, y, style, extent.there(after))))
    short = block.upsample(x)
    short = block.conv1x1(short) if block.learned_sc else short
    return (y + short) * math.sqrt(0.5), after


def _resblock(
    block: Any, x: Tensor, style: Tensor, extent: Extent, scale: int, more: int
) -> Tensor:
    """AdaINResBlock1."""
    there = extent.there(scale, more)
    parts = zip(
        *(block.convs1, block.convs2, block.adain1, block.adain2, block.alpha1, block.alpha2),
        strict=True,
    )
    for conv1, conv2, norm1, norm2, alpha1, alpha2 in parts:
        y = conv1(_normed_snake(norm1, x, style, there, alpha1))
        x = conv2(_normed_snake(norm2, y, style, there, alpha2)) + x
    return x


def _fold_weight_norms(model: Any) -> None:
    """Have each normalised weight computed once, not at every use."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
