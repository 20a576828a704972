"""Under pytest the annotations of every member are checked at run time.

Shapes by jaxtyping, types by beartype. An import hook and not `--jaxtyping-packages`, which splits its list
wrongly when the checker has arguments.
"""

import os
from pathlib import Path

from jaxtyping import install_import_hook

# The tests' networks are tiny: threads that share them, or spin while they wait, only cost time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PAPERS = sorted(path.parent.name for path in Path(__file__).parent.glob("packages/*/pyproject.toml"))

# An int where a float is declared is fine, as for a static checker (PEP 484's numeric tower).
install_import_hook(
    ["paperkit", *PAPERS], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
