"""Card (1995): college proximity as an instrument for schooling, 3010 young men of the National Longitudinal Survey, 1976.

The published two-stage least squares return to a year of schooling is 0.132 of log wage (standard error 0.055), against 0.075
by least squares, with :data:`FORMULA`'s controls. What the true effect is, nobody knows. Ignoring the confounder, ability,
gives the 0.075 of least squares; that was expected to be too high, and the instrumental-variable estimate is higher still.

References
----------
Card, "Using Geographic Variation in College Proximity to Estimate the Return to Schooling", 1995; table 3 and Wooldridge,
example 15.4.
"""

from __future__ import annotations

import pandas as pd

#: Roles with the published controls.
FORMULA = (
    "lwage ~ exper + expersq + black + smsa + south + smsa66 + "
    "reg662 + reg663 + reg664 + reg665 + reg666 + reg667 + reg668 + reg669 + [educ ~ nearc4]"
)


def load() -> pd.DataFrame:
    """The data as linearmodels ships them.

    Returns
    -------
    DataFrame (3010, 34)
        Among its columns ``lwage`` (log of the hourly wage in cents), ``educ`` (years of schooling), ``nearc4`` (grew up near a
        four-year college), ``exper`` and ``expersq`` (years of potential experience, and squared), and 0/1 indicators
        ``black``, ``smsa``, ``south``, ``smsa66``, ``reg662`` ... ``reg669``. Some columns outside :data:`FORMULA` have gaps.

    Examples
    --------
    >>> load().shape
    (3010, 34)
    """
    from linearmodels.datasets import card

    return card.load()
