"""A client generated from proto/ submits a job, watches it, cancels it, and sees it end.

Usage: grpc_job.py ADDRESS PROTO_DIR JOB.yaml
Prints one JSON object.
"""

import importlib
import json
import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc


def generate(proto_dir):
    out = tempfile.mkdtemp(prefix="pleach-stubs-")
    protos = sorted(str(path) for path in pathlib.Path(proto_dir).glob("pleach/v1/*.proto"))
    code = protoc.main(["protoc", f"-I{proto_dir}", f"--python_out={out}", f"--grpc_python_out={out}", *protos])
    assert code == 0, "protoc failed"
    sys.path.insert(0, out)
    names = ["common_pb2", "job_pb2", "job_pb2_grpc"]
    return [importlib.import_module(f"pleach.v1.{name}") for name in names]


def main():
    address, proto_dir, job_file = sys.argv[1:]
    common, job, job_grpc = generate(proto_dir)
    state = common.JobState.Name
    spec = pathlib.Path(job_file).read_text()
    with grpc.insecure_channel(address) as channel:
        jobs = job_grpc.JobServiceStub(channel)
        metadata = (("pleach-tenant", "default"),)

        def call(method, request):
            return method(request, metadata=metadata, timeout=60)

        submitted = call(jobs.SubmitJob, job.SubmitJobRequest(spec=spec))
        again = call(jobs.SubmitJob, job.SubmitJobRequest(spec=spec))
        name = submitted.job.id

        refused = None
        try:
            call(jobs.SubmitJob, job.SubmitJobRequest(spec=spec.replace("max_steps", "max_stesp"), id="broken"))
        except grpc.RpcError as error:
            refused = {"status": error.code().name, **{k: v for k, v in error.trailing_metadata() if k == "pleach-code"}}

        steps, states, seqs, cancelled = [], [], [], False
        watch = jobs.WatchJob(job.WatchJobRequest(id=name), metadata=metadata, timeout=240)
        for update in watch:
            kind = update.WhichOneof("update")
            if update.seq:
                seqs.append(update.seq)
            if kind == "step":
                steps.append([update.step.step, update.step.loss])
                if not cancelled and len(steps) >= 2:
                    call(jobs.CancelJob, job.CancelJobRequest(id=name, reason="seen enough"))
                    cancelled = True
            elif kind == "job":
                states.append(state(update.job.state))
        last = call(jobs.GetJob, job.GetJobRequest(id=name)).job
        listed = call(jobs.ListJobs, job.ListJobsRequest()).jobs
        print(
            json.dumps(
                {
                    "created": [submitted.created, again.created],
                    "refused": refused,
                    "steps": steps,
                    "states": states,
                    "ordered": seqs == sorted(set(seqs)),
                    "state": state(last.state),
                    "reason": last.reason,
                    "durable_step": last.tasks[0].durable_step,
                    "step": last.tasks[0].step,
                    "listed": [item.id for item in listed],
                }
            )
        )


main()
