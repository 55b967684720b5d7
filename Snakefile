# One rule a job of the plan that `python -m lib.workbook.report` has checked and written; see lib/workbook/report.py.
# Run it with `make report`, which also clears up after a killed run and builds the index.
import json
import re
import sys

with open(config["plan"], encoding="utf-8") as file:
    PLAN = json.load(file)
NOTEBOOKS = PLAN["notebooks"]
PYTHON = sys.executable


rule all:
    input:
        [f"results/{job['id']}.json" for job in PLAN["jobs"]],


for number, job in enumerate(PLAN["jobs"]):

    # The marker that the notebook's last cell writes is the only declared output: Snakemake deletes what is declared when
    # a job fails or before it is repeated, and pages, logs and checkpoints have to survive that. Which markers are of the
    # plan is decided before (`key` digests the resolved values, the lib sources, the lock and the data): Snakemake makes
    # those that are missing, and what comes after them. On a cluster `resources` says what the job asks for.
    rule:
        name:
            f"job_{number}_" + re.sub(r"\W", "_", job["id"])  # the number keeps apart what \W would make one
        input:
            [f"results/{before}.json" for before in job["upstream"]],
        output:
            f"results/{job['id']}.json",
        params:
            job=job["id"],
            notebook=job["notebook"],
            threads=job["threads"],
            key=job["key"],
            options="--no-gpu" if "resources" in job and not job["resources"]["gpu"] else "",
        threads: job["threads"]
        resources:
            **job.get("resources", {"gpu": job["gpu"]}),
        shell:
            "{PYTHON:q} -m lib.workbook.run --notebook {NOTEBOOKS:q}/{params.notebook:q}.ipynb --job {params.job:q} --report . "
            "--parameters parameters/{params.job:q}.yaml --threads {params.threads} --key {params.key} {params.options}"
