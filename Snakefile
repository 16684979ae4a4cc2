# Executes the chapters. `make run` calls it through tools/execute.py; on a cluster:
#     snakemake --workflow-profile profiles/slurm --config profile=paper
import sys

sys.path.insert(0, "tools")
from chapters import ROOT, all_chapters

PROFILE = config.get("profile", "quick")
CHAPTERS = {chapter.slug: chapter for chapter in all_chapters()}

# The code without the prose, written only when it changed: a new sentence or caption reruns nothing.
for chapter in CHAPTERS.values():
    extract = ROOT / "build" / "code" / f"{chapter.slug}.py"
    if not extract.exists() or extract.read_text() != chapter.code():
        extract.parent.mkdir(parents=True, exist_ok=True)
        extract.write_text(chapter.code())

wildcard_constraints:
    profile="quick|paper",
    slug="[a-z0-9-]+",

rule all:
    input: expand(f"build/done/{PROFILE}/{{slug}}", slug=config.get("only", "").split() or CHAPTERS)

rule chapter:
    input:
        code="build/code/{slug}.py",
        library=lambda wildcards: CHAPTERS[wildcards.slug].library(),
        pins="requirements.txt",
    # A marker, not the results: Snakemake deletes a rule's old outputs before it starts, and the last good
    # results must survive a rerun that fails.
    output: touch("build/done/{profile}/{slug}")
    log: "build/logs/{profile}/{slug}.log"
    threads: 1
    resources:
        gpu=lambda wildcards: int(wildcards.profile == "paper"),
        mem_mb=lambda wildcards: 4000 if wildcards.profile == "quick" else 32000,
        runtime=lambda wildcards: 30 if wildcards.profile == "quick" else 600,
    shell: f"{sys.executable} tools/run_chapter.py {{wildcards.slug}} --profile {{wildcards.profile}} > {{log}} 2>&1"
