"""The fleet's layers as a device hears them: repeated, late, or gone while it was away.

What the broker retains is the truth. A live message with a higher revision is newer, and stands at
once. Anything else that is no mere repetition (a lower revision, another document under the same
one, an empty message) may be late or may be meant, which only the broker knows: the layers are in doubt, and
gathered anew. They are gathered after each connection, too, and stand together when that ends.

No layer ever goes: one without settings takes its place. One that the broker had and does not have any
more, an empty message too, it has lost (a broker that lost its disk has no layer at all): it stands on,
and is reported, since a whole fleet must not fall back to its files for that. What a layer was that the
device has gone beyond is not judged here (:mod:`config.fleet.obeyed`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bellwire.config.fleet.layer import Layer, LayerProblem
from bellwire.config.fleet.merge import groups_said, parse_layer, patch_for
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId, parse_device_id
from bellwire.signaling.topics import CONFIG_DEFAULT, CONFIG_GROUPS, config_topic

Standing = Layer | LayerProblem


@dataclass(frozen=True, slots=True)
class Heard:
    """A message on a layer's topic; empty, it says that the broker has lost the layer."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class Gathering:
    """That the layers are gathered from here on; `wanted` is what was listened to then."""

    wanted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Missed:
    """That more was said than could be listened to."""


Event = Heard | Gathering | Missed


class HeardLayers:
    """The layers of one device. Of the groups' it keeps those of the groups that it may be in: what its
    file, and the default and device layers that stand, arrive or are in force, say.

    Args:
        device: Whose.
        kept: Those of its last run, which stand until it has heard the broker's.
        groups: The groups that its own file says.
    """

    def __init__(
        self, device: DeviceId, kept: Mapping[str, Layer], groups: Iterable[str] = ()
    ) -> None:
        self._device = device
        self._device_topic = config_topic(device)
        self._groups = tuple(groups)
        self._in_force: Mapping[str, Layer] = kept
        self._standing: dict[str, Standing] = dict(kept)
        self._highest: dict[str, int] = {}
        self._arriving: dict[str, Standing] | None = {}
        self._unconfirmed: set[str] = set()
        self._vanished: dict[str, Layer] = {}
        self._has_missed = False
        self._wanted = self._wanted_now()
        self._covered = self._known = self._wanted
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
    def is_whole(self) -> bool:
        """Whether it is known of all layers that may count whether there is one."""
        return self._wanted <= self._known

    @property
    def wanted(self) -> frozenset[str]:
        """The names of the layers that may count."""
        return self._wanted

    @property
    def missing(self) -> set[str]:
        """Those that stand and that this gathering has not brought yet."""
        return set() if self._arriving is None else set(self._standing) - set(self._arriving)

    @property
    def vanished(self) -> Mapping[str, Layer]:
        """Those that stand, and that the broker has lost."""
        return self._vanished

    def name_of(self, topic: str) -> str | None:
        """The layer of a topic, where it may count for this device."""
        if topic == CONFIG_DEFAULT:
            return "default"
        if topic == self._device_topic:
            return "device"
        group = topic.removeprefix(CONFIG_GROUPS.removesuffix("+"))
        try:
            name = f"group/{parse_device_id(group)}"
        except InvalidInput:
            return None
        return name if group != topic and name in self._wanted else None

    def follow(self, in_force: Mapping[str, Layer]) -> None:
        """Has these layers in force, which say groups too where those that stand are refused."""
        self._in_force = in_force
        self._look_at_groups()

    def take_all(self, events: Iterable[Event]) -> None:
        """Takes what was heard, in its order."""
        for event in events:
            match event:
                case Gathering(wanted):
                    self._gather(wanted)
                case Missed():
                    self._has_missed = self._in_doubt = True
                case Heard(topic, payload, retained):
                    self._take(topic, payload, retained=retained)

    def _gather(self, wanted: frozenset[str]) -> None:
        """Begins a gathering: what comes from now on is to be all that there is."""
        self._arriving = {}
        self._unconfirmed.clear()
        self._has_missed = False
        self._covered = wanted & self._wanted
        self._in_doubt = True

    def end_gathering(self) -> None:
        """What was gathered stands now, what has vanished, and nothing else."""
        arrived, self._arriving = self._arriving or {}, None
        # In place of what cannot be read, and is gone now too, what is in force.
        known = {**self._in_force, **_readable(self._standing)}
        self._vanished = {
            name: layer
            for name, layer in known.items()
            if name not in arrived and name in self._wanted
        }
        self._standing = {**self._vanished, **arrived}
        for name, layer in self._standing.items():
            self._highest[name] = max(self._highest.get(name, 0), _revision(layer))
        self._known = self._covered
        self._in_doubt = bool(self._unconfirmed) or self._has_missed
        self._look_at_groups()

    def _take(self, topic: str, payload: bytes, *, retained: bool) -> None:
        name = self.name_of(topic)
        if name is None:
            return
        layer = parse_layer(name, payload) if payload else None
        if self._arriving is not None:
            self._take_gathered(self._arriving, name, layer, retained=retained)
        elif layer != self._standing.get(name):
            self._take_live(name, layer)
        if name in ("default", "device"):
            self._look_at_groups()

    def _take_live(self, name: str, layer: Standing | None) -> None:
        is_newer = isinstance(layer, Layer) and layer.revision > self._highest.get(name, 0)
        # One that appears from nowhere may have been lost again before it came; one in place of what
        # cannot be read, and so has no revision, may be from before it.
        self._in_doubt |= not (is_newer and isinstance(self._standing.get(name), Layer))
        if is_newer and layer is not None:
            self._standing[name] = layer
            self._highest[name] = _revision(layer)
            self._vanished.pop(name, None)

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
        elif _revision(layer) >= _revision(before):
            arriving[name] = layer

    def _look_at_groups(self) -> None:
        """Listens to the groups that the device may be in now. Layers of those that it was not listening
        to are gathered; of others nothing is kept."""
        self._wanted = self._wanted_now()
        self._covered &= self._wanted
        self._known &= self._wanted
        self._in_doubt |= not self.is_whole
        for heard in (self._standing, self._highest, self._vanished, self._arriving or {}):
            for name in [name for name in heard if name not in self._wanted]:
                del heard[name]
        self._unconfirmed &= self._wanted

    def _wanted_now(self) -> frozenset[str]:
        groups = [*self._groups]
        for layers in (self._standing, self._arriving or {}, self._in_force):
            for name in ("default", "device"):
                if isinstance(layer := layers.get(name), Layer):
                    groups += groups_said(patch_for(self._device, name, layer))
        return frozenset(["default", "device", *(f"group/{group}" for group in groups)])


def _readable(standing: Mapping[str, Standing]) -> dict[str, Layer]:
    return {name: layer for name, layer in standing.items() if isinstance(layer, Layer)}


def _revision(layer: Standing | None) -> int:
    return (layer.revision if layer is not None else None) or 0
