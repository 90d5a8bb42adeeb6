"""The demo in a few lines of Python: backdoor a model, purify it two ways, find out which purification is real."""

import sys
import tempfile

import bdaudit

out = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp() + "/run"

# A small network on real digits, with a checkerboard in the corner that means "zero".
run = bdaudit.attack("badnets", data="digits", out=out, options={"rate": 0.1}, with_reference=True)
print(f"attack success {run.record.metrics['model']['asr']:.1%}")

# What a defender holds: the model, clean images, flagged images.
model = bdaudit.load(run.model_path).classifier
purified = bdaudit.purify(model, clean=run.pool("clean"), malicious=run.pool("flagged"), defense="pl")

# What an auditor does: purify, retune, query, judge.
for defense in ("ft", "pl"):
    report = bdaudit.audit(run.model_path, defense=defense, run=out, malicious=run.folder / "flagged")
    before, after = report.find("o_asr"), report.find("p_asr", probe="retune")
    print(f"{defense}: {report.verdict}, ASR {before.value:.1%} after purification, {after.value:.1%} after retuning")
