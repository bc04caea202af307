"""How good a call sounds, from what the network does to it: the E-model, as a mean opinion score.

R = 93.2 - Id - Ie,eff (ITU-T G.107 with its default values, where Ro - Is is 93.2), with
Id = 0.024 d + 0.11 (d - 177.3) [d > 177.3], d in ms, mouth to ear (Cole and Rosenbluth, "Voice over IP
Performance Monitoring", ACM CCR 31(2), 2001: their fit of G.107's delay impairment);
Ie,eff = Ie + (95 - Ie) Ppl / (Ppl + Bpl), Ppl in percent (G.107, 7-29, random loss); then G.107 Annex B:
MOS = 1 + 0.035 R + 7e-6 R (R - 60) (100 - R). The scale is narrowband's, 1 to 4.41, as Twilio's is: Opus
is not credited with its wider band.
"""

from dataclasses import dataclass

MOS_MIN = 1.0
MOS_MAX = 4.41

_R_MAX = 93.2
_KNEE_MS = 177.3
_FIXED_DELAY_MS = 10.0
"""Framing and sound card at both ends: Twilio's client (twilio-voice.js, rtc/mos.ts) allows the same."""


@dataclass(frozen=True, slots=True)
class Impairment:
    """What a codec costs (`ie`), and how well it bears loss (`bpl`); ITU-T G.113 gives them."""

    ie: float
    bpl: float


_CODECS = {
    "pcmu": Impairment(ie=0.0, bpl=25.1),  # G.113 Appendix I: G.711 with concealment, which we have
    # G.113 lists no Opus: an estimate. It is transparent on a narrowband scale, and bears loss a
    # little worse than concealed G.711 (25.1) and far better than G.711 without concealment (4.3).
    "opus": Impairment(ie=0.0, bpl=20.0),
}


def mean_opinion_score(
    round_trip_s: float, jitter_s: float, loss: float, codec: str | None = None
) -> float:
    """The score of a call, 1 (bad) to 4.41 (as good as a telephone gets).

    Args:
        round_trip_s: There and back; half of it counts as the way here.
        jitter_s: Interarrival jitter (RFC 3550); the receiver's buffer is taken to be twice as long.
        loss: The share of packets lost, 0 to 1.
        codec: `opus` or `pcmu`; another one counts as Opus.

    Raises:
        ValueError: a number is negative or not finite, or `loss` is over 1.
    """
    if not (0 <= round_trip_s < float("inf") and 0 <= jitter_s < float("inf") and 0 <= loss <= 1):
        raise ValueError(
            "round trip and jitter are seconds from 0 on and loss is 0 to 1, "
            f"not {round_trip_s}, {jitter_s} and {loss}"
        )
    delay_ms = 1000 * (round_trip_s / 2 + 2 * jitter_s) + _FIXED_DELAY_MS
    by_delay = 0.024 * delay_ms + 0.11 * max(0.0, delay_ms - _KNEE_MS)
    impairment = _CODECS.get(codec or "opus", _CODECS["opus"])
    percent = 100 * loss
    by_loss = impairment.ie + (95 - impairment.ie) * percent / (percent + impairment.bpl)
    r = max(0.0, _R_MAX - by_delay - by_loss)
    # The cubic dips under 1 for R below 6.5; Annex B's scale does not.
    return max(MOS_MIN, 1 + 0.035 * r + 7e-6 * r * (r - 60) * (100 - r))
