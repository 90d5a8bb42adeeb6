"""bdaudit purify."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import (
    RECOMMENDED,
    Configured,
    PluginName,
    check_options,
    common,
    json_flag,
    keeps_checkpoints,
    model_inputs,
    warn_broken,
)


@click.command("purify", cls=Configured)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--defense",
    type=PluginName("defense"),
    required=True,
    help=f"Which defense to run; with flagged images we recommend {RECOMMENDED}.",
)
@model_inputs
@click.option("--out", type=click.Path(path_type=Path), help="Where to write.  [default: MODEL.purified.EXT]")
@keeps_checkpoints
@json_flag
@common
def command(
    model: Path,
    defense: str,
    clean: Path | None,
    malicious: Path | None,
    target: int | None,
    train: Path | None,
    screen: bool,
    attack_run: Path | None,
    arch: str | None,
    normalisation: str | None,
    options: tuple[tuple[str, str], ...],
    out: Path | None,
    checkpoints: Path | None,
    as_json: bool,
    seed: int,
    device: str,
    quiet: bool,
    config: Path | None,
) -> None:
    """Purify MODEL and write the result in MODEL's own format.

    \b
    bdaudit purify model.pt --defense pl --malicious flagged/
    """
    import json
    from dataclasses import asdict

    from bdaudit import api, plugins
    from bdaudit.errors import OutputError, one_line
    from bdaudit.flow.audit import purify
    from bdaudit.flow.gather import purification_evidence
    from bdaudit.flow.output import write_found
    from bdaudit.inputs.files import check_writable
    from bdaudit.runtime import generator
    from bdaudit.training.progress import progress_shown, say

    warn_broken()
    chosen = plugins.get("defense", defense).parse(check_options(options))
    out = out or model.with_name(f"{model.stem}.purified{model.suffix}")
    check_writable(out)
    if out.is_dir():
        raise OutputError(f"--out {out}: is a folder; name the file to write")
    if out.resolve() == model.resolve():
        raise OutputError(f"--out {out}: would replace the suspect model itself; give another name")
    with progress_shown(not quiet):
        suspect = api.load(
            model, arch=arch, normalisation=normalisation, clean=clean or model.parent / "clean", device=device
        )
        evidence = purification_evidence(
            suspect,
            chosen,
            clean=clean,
            malicious=malicious,
            target=target,
            train=train,
            run=attack_run,
            screen_with=generator(seed) if screen else None,
        )
        for name in chosen.oracle():
            say(f"ORACLE: {defense} uses {name}; a real defender would not have it")
        purified, granted = purify(chosen, evidence, seed, checkpoints=checkpoints)
        api.save(suspect, purified.model, out, granted, chosen)
        for path in write_found(out, purified.found):
            say(f"also wrote {one_line(path)}")
        if defense != RECOMMENDED and "malicious" in chosen.wants() and not chosen.oracle():
            say(
                f"with flagged images we recommend --defense {RECOMMENDED}, which retuning undoes more rarely (docs/sep.md)"
            )
        say("low attack success proves little yet; to find out whether it is real:")
        say(f"  bdaudit audit {one_line(model)} --purified {one_line(out)}")
    if as_json:
        row = {
            "out": str(out),
            "defense": defense,
            "options": chosen.model_dump(),
            "seed": seed,
            "arch": str(suspect.classifier.arch),
            "preprocessing": asdict(suspect.classifier.preprocessing),
            "notes": [*suspect.notes, *evidence.notes, *purified.found.notes],
            "findings": [f.model_dump() for f in purified.found.findings],
        }
        click.echo(json.dumps({**row, "granted": [g.model_dump() for g in granted]}))
    else:
        click.echo(str(out))
