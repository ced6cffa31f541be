"""The descriptor table against a dictionary, whatever is done to it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.errors import KvmError, Reason
from kvmd.handles.table import Descriptor, Table
from kvmd.images.base import Kind

OWNERS = st.sampled_from(["uid:1", "uid:2", "cert:a"])
MOST, MOST_PER_OWNER = 12, 5


class Tables(RuleBasedStateMachine):
    """Opens, closes, disconnects and guesses, by several owners over several connections."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(Quotas(Limits(descriptors=MOST, descriptors_per_uid=MOST_PER_OWNER))["descriptors"])
        self.model: dict[str, tuple[str, object]] = {}
        self.connections = {owner: [SimpleNamespace(), SimpleNamespace()] for owner in ("uid:1", "uid:2", "cert:a")}

    def owned(self, owner: str) -> int:
        return sum(who == owner for who, _ in self.model.values())

    @rule(target=ids, owner=OWNERS, which=st.integers(0, 1))
    def add(self, owner: str, which: int) -> str:
        connection = self.connections[owner][which]
        if len(self.model) >= MOST or self.owned(owner) >= MOST_PER_OWNER:
            with pytest.raises(KvmError) as failure:
                self.table.add(owner, connection, "dump:/a", Kind.DUMP, False, SimpleNamespace())
            assert failure.value.reason is Reason.DESCRIPTOR_LIMIT
            return "none"
        descriptor = self.table.add(owner, connection, "dump:/a", Kind.DUMP, False, SimpleNamespace())
        assert len(descriptor.id) >= 22
        assert descriptor.id not in self.model
        self.model[descriptor.id] = owner, connection
        return descriptor.id

    @rule(id_=ids, owner=OWNERS)
    def get(self, id_: str, owner: str) -> None:
        if self.model.get(id_, ("", None))[0] == owner:
            assert self.table.get(id_, owner).id == id_
        else:
            with pytest.raises(KvmError) as failure:
                self.table.get(id_, owner)
            assert failure.value.reason is Reason.NO_SUCH_DESCRIPTOR
            assert failure.value.metadata == {}

    @rule(id_=ids)
    def remove(self, id_: str) -> None:
        if id_ in self.model:
            owner, _ = self.model.pop(id_)
            descriptor = self.table.get(id_, owner)
            self.table.remove(descriptor)
            with pytest.raises(KvmError):
                self.table.remove(descriptor)

    @rule(owner=OWNERS, which=st.integers(0, 1))
    def disconnect(self, owner: str, which: int) -> None:
        connection = self.connections[owner][which]
        gone: list[Descriptor] = self.table.of(connection)
        assert {each.id for each in gone} == {id_ for id_, (_, held) in self.model.items() if held is connection}
        for each in gone:
            self.table.remove(each)
            del self.model[each.id]

    @invariant()
    def counted(self) -> None:
        assert len(self.table) == len(self.model)


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
