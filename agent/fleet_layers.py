"""The fleet's layers as a device hears them: repeated, late, or gone while it was away.

What the broker retains is the truth. A live message with a higher revision is newer, and stands at
once. Anything else that is no mere repetition (a lower revision, another document under the same
one, a removal) may be late or may be meant, which only the broker knows: the layers are in doubt, and
gathered anew. They are gathered after each connection, too, and stand together when that ends.

A layer goes only where somebody says so: an empty message. One that the broker had and does not have
any more, without that word, has vanished (a broker that lost its disk has no layer at all): it stands
on, and is reported, since a whole fleet must not fall back to its files for that.
"""

from collections.abc import Mapping

from config.fleet_layer import Layer, LayerProblem
from config.fleet_merge import parse_layer
from signaling.errors import InvalidInput
from signaling.identifiers import DeviceId, parse_device_id
from signaling.topics import CONFIG_DEFAULT, CONFIG_GROUPS, config_topic

_LAYERS_KEPT = 512
"""More groups than a fleet has; what is beyond is not heard."""

Standing = Layer | LayerProblem


class HeardLayers:
    """The layers of one device.

    Args:
        device: Whose.
        kept: Those of its last run, which stand until it has heard the broker's.
    """

    def __init__(self, device: DeviceId, kept: Mapping[str, Layer]) -> None:
        self._device_topic = config_topic(device)
        self._standing: dict[str, Standing] = dict(kept)
        self._highest: dict[str, int] = {}
        self._arriving: dict[str, Standing] | None = {}
        self._unconfirmed: set[str] = set()
        self._had = set(kept)
        self._removed: set[str] = set()
        self._vanished: dict[str, Layer] = {}
        self._in_doubt = True

    @property
    def standing(self) -> Mapping[str, Standing]:
        """The layers by name; one that cannot be read stands as its problem."""
        return self._standing

    @property
    def in_doubt(self) -> bool:
        """Whether they are to be gathered."""
        return self._in_doubt

    @property
    def missing(self) -> set[str]:
        """Those that stand and that this gathering has not brought yet."""
        return set() if self._arriving is None else set(self._standing) - set(self._arriving)

    @property
    def vanished(self) -> Mapping[str, Layer]:
        """Those that stand, and that the broker does not have, though nobody removed them."""
        return self._vanished

    def gather(self) -> None:
        """Begins a gathering: what comes from now on is to be all that there is."""
        self._arriving = {}
        self._unconfirmed.clear()
        self._in_doubt = True

    def end_gathering(self) -> None:
        """What was gathered stands now, what has vanished, and nothing else."""
        arrived, self._arriving = self._arriving or {}, None
        self._vanished = {
            name: layer
            for name, layer in self._standing.items()
            if isinstance(layer, Layer)
            and name in self._had - self._removed
            and name not in arrived
        }
        self._standing = {**self._vanished, **arrived}
        self._had = set(self._standing) - self._unconfirmed
        self._removed.clear()
        for name, layer in self._standing.items():
            self._highest[name] = max(self._highest.get(name, 0), _revision(layer))
        self._in_doubt = bool(self._unconfirmed)

    def take(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Takes a message on a layer's topic; `retained` is its flag, empty means removed."""
        name = self._name_of(topic)
        if name is None:
            return
        layer = parse_layer(name, payload) if payload else None
        if layer is None and name in self._standing:
            self._removed.add(name)
        if self._arriving is not None:
            self._take_gathered(self._arriving, name, layer, retained=retained)
        elif layer != self._standing.get(name):
            self._take_live(name, layer)

    def _take_live(self, name: str, layer: Standing | None) -> None:
        is_newer = isinstance(layer, Layer) and layer.revision > self._highest.get(name, 0)
        # One that appears from nowhere may have been removed again before it came.
        self._in_doubt |= not is_newer or name not in self._standing
        if is_newer and layer is not None and len(self._standing) < _LAYERS_KEPT:
            self._standing[name] = layer
            self._highest[name] = _revision(layer)

    def _take_gathered(
        self, arriving: dict[str, Standing], name: str, layer: Standing | None, *, retained: bool
    ) -> None:
        before = arriving.get(name)
        if layer == before:
            if retained:
                self._unconfirmed.discard(name)
            return
        if retained and (before is None or _revision(layer) >= _revision(before)):
            self._unconfirmed.discard(name)
        else:
            self._unconfirmed.add(name)
        if layer is None:
            del arriving[name]
        elif len(arriving) < _LAYERS_KEPT and _revision(layer) >= _revision(before):
            arriving[name] = layer

    def _name_of(self, topic: str) -> str | None:
        if topic == CONFIG_DEFAULT:
            return "default"
        if topic == self._device_topic:
            return "device"
        group = topic.removeprefix(CONFIG_GROUPS.removesuffix("+"))
        try:
            return None if group == topic else f"group/{parse_device_id(group)}"
        except InvalidInput:
            return None


def _revision(layer: Standing | None) -> int:
    return (layer.revision if layer is not None else None) or 0
