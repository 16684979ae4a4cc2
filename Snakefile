# Executes the chapters. `make run` calls it through tools/execute.py; on a cluster: tools/execute.py --on slurm, or
#     snakemake --workflow-profile profiles/slurm --config profile=paper
import os
import sys

sys.path.insert(0, "tools")
from chapters import all_chapters, build_folder, build_root
from folders import whole

PROFILE = config.get("profile", "quick")
BUILD = os.path.relpath(build_root())
WANTED = [c for c in all_chapters() if c.slug in config.get("only", c.slug).split()]

# What is up to date is decided by contents (Chapter.key and the checksums beside the results), not by dates of files
# or by Snakemake's memory: a reverted edit, a new sentence, a wrong clock or a kill repeat no chapter that is done.
STALE = [c.slug for c in WANTED if not whole(build_folder(PROFILE, c.slug), c.key())]
MARKERS = [f"{BUILD}/done/{PROFILE}/{slug}" for slug in STALE]
for marker in MARKERS:
    Path(marker).unlink(missing_ok=True)

wildcard_constraints:
    profile="quick|paper",
    slug="[a-z0-9-]+",

rule all:
    input: MARKERS

rule chapter:
    # A marker, not the results: Snakemake deletes a rule's old outputs before it starts, and the last good
    # results must survive a rerun that fails.
    output: touch(f"{BUILD}/done/{{profile}}/{{slug}}")
    log: f"{BUILD}/logs/{{profile}}/{{slug}}.log"
    threads: 1
    resources:
        gpu=lambda wildcards: int(wildcards.profile == "paper"),
        mem_mb=lambda wildcards: 4000 if wildcards.profile == "quick" else 32000,
        runtime=lambda wildcards: 30 if wildcards.profile == "quick" else 600,
    shell:
        f"{sys.executable} tools/run_chapter.py {{wildcards.slug}} --profile {{wildcards.profile}}"
        " --minutes {resources.runtime} --memory {resources.mem_mb} > {log} 2>&1"
