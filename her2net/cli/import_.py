"""`her2net_import FILE`: check a model archive and put it into the results. (`import` alone is no module name.)"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from her2net.cli.common import execute, make_parser


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_import`."""
    parser = make_parser("import", "Check a model archive and put it into the results, where her2net_predict finds it.")
    parser.add_argument("file", metavar="FILE", type=Path, help="model archive, as her2net_export writes it")
    parser.add_argument("-d", "--dataset", help="folder name to import under, like Dataset007_Name (default: the archive's)")
    parser.add_argument("-p", "--plan", help="plan name to import under (default: the archive's)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Import, and print what the model is."""
    from her2net.archive.manifest import CARD
    from her2net.archive.read import import_archive
    from her2net.paths import find_roots

    roots = find_roots()
    if "her2net_results" in roots.defaulted:
        print(f"Note: her2net_results not set in the environment; using {roots.results}.", file=sys.stderr)
    paths, loaded, digest = import_archive(args.file, roots, dataset=args.dataset, plan=args.plan)
    plan, cohort = loaded.model.plan, loaded.model.fingerprint
    print(f"checked: {len(loaded.manifest.members) + 1} members; test vectors agree to {loaded.difference:.1g}")
    print(f"model:   {' + '.join([*plan.modalities, *plan.tables])}, {plan.splits.n_folds} folds, for {' / '.join(plan.class_names)}; "
          f"trained on {cohort.n_cases} cases of {cohort.n_patients} patients with her2net {loaded.manifest.her2net_version}")
    print(f"licence: {loaded.manifest.licence or 'none was chosen: ask its makers before you use it'}")
    print(f"sha256:  {digest}")
    print(f"card:    {os.path.relpath(paths.imported.with_name(CARD))}")
    print(f"next:    her2net_predict {paths.options} -i new_images -o predictions")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_import`."""
    return execute(run, build_parser(), argv)
