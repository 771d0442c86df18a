"""What docs/scaling.md tells an operator to do to the tables leaves everything right."""

import re

from agent.protocol.ack import StreamAck
from agent.records import digest
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.fleet.cluster import Cluster
from tests.fleet.look import rows, seqs
from tests.fleet.sender import Sender
from tests.outside import ROOT

STEPS = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "scaling.md").read_text(), re.DOTALL)


async def test_records_may_be_partitioned_and_old_ones_dropped(cluster: Cluster) -> None:
    sender = Sender()
    async with Cloud(database.open(cluster.new())) as cloud:
        await cloud.store([sender.batch([1, 2, 3])])
        async with cloud.database.begin() as transaction:
            for step in STEPS:
                await transaction.execute(step)
        verdict = await cloud.store([sender.batch([2, 3, 4]), sender.batch([6])])
        assert (verdict.records_new, verdict.records_known) == (2, 2)
        assert await seqs(cloud, sender.device) == [1, 2, 3, 4, 6]
        await rows(cloud, "DELETE FROM records WHERE seq < 4 RETURNING seq")
        assert (await cloud.store([sender.batch([1, 2, 3, 5])])).records_known == 3
        assert (await cloud.ack(sender.device)).epochs["e1"][sender.stream] == StreamAck(
            6, tail=(6, digest(sender.record(6).body))
        )
        assert await seqs(cloud, sender.device) == [4, 5, 6]


def test_the_document_has_its_steps() -> None:
    assert len(STEPS) == 2
