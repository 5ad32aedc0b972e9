"""A batch script for Slurm: Ray starts on every node of the allocation, and the job runs on the first (`ray symmetric-run`)."""

from __future__ import annotations

import shlex

from datagen.cluster.place import job_text
from datagen.cluster.profile import Profile, SlurmOptions
from datagen.errors import ClusterError
from datagen.job import Job

_START_S = 300  # nodes of one allocation may start this far apart
_END = "END-OF-JOB-FILE"


def batch_script(cluster: Profile, job: Job) -> str:
    """What `sbatch` takes. `job` comes from `place`."""
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(cluster, job)),
        "#",
        "# shellcheck disable=SC1091,SC2016  # what setup sources is on the nodes only; a $ in a value is meant",
        "# A lost node does not end the job. Started again after a preemption, it goes on where it was.",
        "set -eo pipefail",
        "",
        *cluster.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in cluster.env.items()),
        "",
        "job=$(mktemp)",
        "trap 'rm -f \"$job\"' EXIT",
        f"cat >\"$job\" <<'{_END}'",
        job_text(job).rstrip("\n"),
        _END,
        "",
        *_commands(cluster),
    ]
    return "\n".join(lines) + "\n"


def _options(cluster: Profile, job: Job) -> list[str]:
    (group,) = cluster.workers
    slurm = cluster.slurm or SlurmOptions()
    gpu = f"gpu:{group.accelerator}:{group.gpus}" if group.accelerator else f"gpu:{group.gpus}"
    options = {
        "job-name": f"{cluster.name}-{job.name}",
        "nodes": group.max_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": group.cpus,
        "mem": f"{round(group.memory_gib * 1024)}M",
        "gres": gpu if group.gpus else None,
        "time": slurm.time_limit,
        "partition": slurm.partition,
        "account": slurm.account,
        "open-mode": "append",
    }
    return ["--requeue", "--no-kill", *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def _commands(cluster: Profile) -> list[str]:
    (group,) = cluster.workers
    port = (cluster.slurm or SlurmOptions()).port
    return [
        'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f"export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT={_START_S}",
        "status=0",
        f'srun --no-kill ray symmetric-run --address "${{nodes[0]}}:{port}" --min-nodes "$SLURM_JOB_NUM_NODES" \\',
        f'  --num-cpus={group.cpus} --num-gpus={group.gpus} -- {shlex.quote(cluster.python)} -m datagen run "$job" || status=$?',
        "",
        f"# {ClusterError.exit_code}: the machine or a bucket broke, and starting again resumes.",
        f'if [ "$status" -eq {ClusterError.exit_code} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {cluster.retries} ]; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$status"',
    ]
