"""A run of a job around its graph: what the driver does before, while and after samples stream through the steps.

`driver` begins it (lease, sweep, list, leave out what is done), `stream` is the run itself, `commit` publishes what workers staged,
`stopping` ends it early in good order. `summary` counts; `reporting`, `console` and `heartbeat` tell people and other processes.
`sampling` and `estimate` are for `datagen plan --sample`.
"""

from datagen.run.driver import plan_job, required, run_job
from datagen.run.summary import RunSummary

__all__ = ["RunSummary", "plan_job", "required", "run_job"]
