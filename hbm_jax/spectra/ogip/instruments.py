"""Energy ranges in which the spectra of an instrument are usually fitted, by the keywords of its files."""

import re
from typing import NamedTuple

UNKNOWN = (0.3, 10.0)  # keV, for instruments that are not in the table


class EnergyRange(NamedTuple):
    """Energy range of an instrument.

    Attributes
    ----------
    instrument : str
        Name of the instrument, for messages.
    low, high : float
        Limits [keV].
    known : bool
        False if the instrument has no range of its own, and the limits are those for all others.
    """

    instrument: str
    low: float
    high: float
    known: bool = True


# Names, patterns of "TELESCOP INSTRUME DETNAM" in capitals, and energies [keV].
_RANGES = (
    # XMM-Newton Users Handbook; den Herder et al. 2001, A&A 365, L7.
    ("XMM-Newton EPIC", r"XMM\S* E(PN|MOS)", (0.3, 10.0)),
    ("XMM-Newton RGS", r"XMM\S* RGS", (0.33, 2.5)),
    # Broad band of the Chandra Source Catalog, Evans et al. 2010, ApJS 189, 37.
    ("Chandra ACIS", r"CHANDRA ACIS", (0.5, 7.0)),
    # Spectra of the Swift-XRT catalogue, Evans et al. 2009, MNRAS 397, 1177; BAT survey, Oh et al. 2018, ApJS 235, 4.
    ("Swift XRT", r"SWIFT XRT", (0.3, 10.0)),
    ("Swift BAT", r"SWIFT BAT", (14.0, 195.0)),
    # Harrison et al. 2013, ApJ 770, 103.
    ("NuSTAR", r"NUSTAR FPM", (3.0, 79.0)),
    # Meegan et al. 2009, ApJ 702, 791; NaI below its upper end, as in the spectral catalogues of GBM.
    ("Fermi GBM NaI", r"(GLAST|FERMI) GBM.*\b(NAI|N[0-9AB]\b)", (8.0, 900.0)),
    ("Fermi GBM BGO", r"(GLAST|FERMI) GBM.*\b(BGO|B[01]\b)", (200.0, 40_000.0)),
    # Predehl et al. 2021, A&A 647, A1.
    ("eROSITA", r"(EROSITA|SRG\S*) (EROSITA|MERGED|TM)", (0.2, 8.0)),
    ("NICER", r"NICER", (0.3, 10.0)),
    # With the gate valve of the dewar closed.
    ("XRISM Resolve", r"XRISM RESOLVE", (1.7, 12.0)),
    # Weisskopf et al. 2022, JATIS 8, 026002.
    ("IXPE", r"IXPE", (2.0, 8.0)),
)


def default_energies(keywords: str) -> EnergyRange:
    """Return the energy range in which the spectra of an instrument are fitted by default.

    It is 0.3 to 10 keV for instruments that are not in the table.

    Parameters
    ----------
    keywords : str
        Values of TELESCOP, INSTRUME and DETNAM, with a space between them; in any case.

    Examples
    --------
    >>> default_energies("CHANDRA ACIS ACIS-56789")
    EnergyRange(instrument='Chandra ACIS', low=0.5, high=7.0, known=True)
    """
    text = " ".join(keywords.upper().split())
    for name, pattern, (low, high) in _RANGES:
        if re.match(pattern, text):
            return EnergyRange(name, low, high)
    return EnergyRange(text or "unknown instrument", *UNKNOWN, known=False)
