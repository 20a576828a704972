"""The cost model of `paths`, fitted to measured times. Used by `bench paths`."""

from typing import Any

import numpy as np
from paperkit.timing import median_ms

from ccconv import paths


def fitted(rows: list[dict[str, Any]], table: str) -> paths.Terms:
    """Charges, in ns, that come nearest to the times of `path_times`: what `paths.CHARGES[table]` holds.

    Least squares of the relative errors of each path; a term whose charge would be negative is left out.
    """
    found: paths.Terms = {}
    rows = [row for row in rows if (row["mode"] == "training") == (table == "training")]
    for name, priced in paths.CHARGES[table].items():
        path = name.split()[0]
        cases = [
            (row["terms"][name], median_ms(row["times"].get(path, [row["once"][path]])))
            for row in rows
            if name in row["terms"] and path in row["once"]
        ]
        left = list(priced)
        while left and cases:
            matrix = np.array([[given[term] / (1e6 * ms) for term in left] for given, ms in cases])
            solved = np.linalg.lstsq(matrix, np.ones(len(cases)), rcond=None)[0]
            if min(solved) >= 0:
                found[name] = {**dict.fromkeys(priced, 0.0), **dict(zip(left, solved.tolist(), strict=True))}
                break
            left.pop(int(np.argmin(solved)))
    return found
