"""A batch script for Slurm: Ray starts on every node of the allocation, and the job runs on the first (`ray symmetric-run`).

What `ray symmetric-run` does at its end stops every Ray of its user on the node, hence whole nodes; and it ends with 0 when Ray did not
start, hence the file with the job's own exit code.
"""

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
        "# Only this job may use its Ray. Said on every node: a head alone would take a token that lies in the home of its user.",
        "RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')",
        "export RAY_AUTH_TOKEN RAY_AUTH_MODE=token",
        "",
        "job=$(mktemp)",
        'trap \'rm -f "$job" "$job.code"\' EXIT',
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
    return ["--exclusive", "--requeue", "--no-kill", *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def _commands(cluster: Profile) -> list[str]:
    (group,) = cluster.workers
    port, broke = (cluster.slurm or SlurmOptions()).port, ClusterError.exit_code
    run = f'{cluster.python} -m datagen run "$1"'
    return [
        'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f"export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT={_START_S}",
        f'srun --no-kill ray symmetric-run --address "${{nodes[0]}}:{port}" --min-nodes "$SLURM_JOB_NUM_NODES" \\',
        f"  --num-cpus={group.cpus} --num-gpus={group.gpus} -- \\",
        f'  bash -c \'{run}; echo $? >"$1.code"\' - "$job" || true',
        "",
        f"# {broke}: Ray, the machine or a bucket broke, and starting again resumes.",
        f"status={broke}",
        'if [ -s "$job.code" ]; then status=$(cat "$job.code"); fi',
        f'if [ "$status" -eq {broke} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {cluster.retries} ]; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$status"',
    ]
