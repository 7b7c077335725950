"""`min_precision` in an offline run."""

from offline.answering import Answerer
from service.inference.proofs import ServedProof
from service.inference.request_fields import PredictFields, parse_fields
from tasks.scores import Proof
from tests.offline.test_answering import images, run, shard
from tests.support.catalog import FLORENCE
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS


def test_a_row_counts_the_objects_that_a_proof_leaves_out() -> None:
    _, request = parse_fields(PredictFields, {"task": "object_detection"})
    proof = Proof(FLORENCE.id, "", "", "", {"task": "object_detection"}, 0.9, 0.95, 0.99, 1, 80)

    async def work(answerer: Answerer) -> None:
        (row,) = await answerer.rows(shard(*images(1)))
        assert (row.result, row.left_out) == ({"detections": []}, 1)

    decoder = FakeDecoder(FLORENCE_ANSWERS)
    proofs = (ServedProof(proof, request),)
    run(work, decoder, "object_detection", min_precision=0.9, proofs=proofs)
