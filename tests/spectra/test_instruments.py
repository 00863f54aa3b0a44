"""Default energies of instruments, from the headers of real files and made-up ones."""

import numpy as np
import pytest
from small_ogip import NUM_CHANNELS, small_arf, small_rmf, small_spectrum

from hbm_jax.data import read_grouped_spectra
from hbm_jax.spectra import SpectrumStack, default_energies, write_arf, write_pha, write_rmf
from hbm_jax.validation import DataError


@pytest.mark.parametrize(
    ("keywords", "name", "band"),
    [
        ("XMM EPN", "XMM-Newton EPIC", (0.3, 10.0)),
        ("XMM EMOS2", "XMM-Newton EPIC", (0.3, 10.0)),
        ("XMM RGS1", "XMM-Newton RGS", (0.33, 2.5)),
        ("CHANDRA ACIS ACIS-7", "Chandra ACIS", (0.5, 7.0)),
        ("Swift XRT", "Swift XRT", (0.3, 10.0)),
        ("Swift BAT", "Swift BAT", (14.0, 195.0)),
        ("NuSTAR FPMA", "NuSTAR", (3.0, 79.0)),
        ("GLAST GBM NAI_03", "Fermi GBM NaI", (8.0, 900.0)),
        ("FERMI  GBM BGO_00", "Fermi GBM BGO", (200.0, 40000.0)),
        ("eROSITA MERGED", "eROSITA", (0.2, 8.0)),
        ("SRG/eROSITA TM1", "eROSITA", (0.2, 8.0)),
        ("NICER XTI", "NICER", (0.3, 10.0)),
        ("XRISM RESOLVE", "XRISM Resolve", (1.7, 12.0)),
        ("IXPE GPD DU1", "IXPE", (2.0, 8.0)),
    ],
)
def test_instruments_have_their_energies(keywords, name, band):
    found = default_energies(keywords)
    assert (found.instrument, found[1:3], found.known) == (name, band, True)


def test_others_have_those_of_no_instrument():
    assert default_energies("SRG ART-XC")[1:] == (0.3, 10.0, False)
    assert default_energies("  ").instrument == "unknown instrument"


@pytest.fixture
def files(tmp_path):
    """A spectrum of a made-up instrument that names itself as told."""
    write_rmf(tmp_path / "a.rmf", small_rmf())
    write_arf(tmp_path / "a.arf", small_arf())

    def written(telescope, instrument):
        options = {"rmf": "a.rmf", "arf": "a.arf", "telescope": telescope, "instrument": instrument}
        return write_pha(tmp_path / f"{instrument}.pha", small_spectrum(), **options)

    return written


def test_the_choice_is_said_and_stored(files):
    options = {"grouping": "none"}
    chandra, other = files("CHANDRA", "ACIS"), files("UNKNOWN", "NEW")
    stack = read_grouped_spectra([chandra, other], **options)
    same = read_grouped_spectra([{"file": chandra, "energies": (0.5, 7.0)}, other], energies=(0.3, 10.0), **options)
    np.testing.assert_array_equal(stack.counts, same.counts)
    first, second = "Energies: 0.5 to 7 keV, the default of Chandra ACIS.", "because UNKNOWN NEW has no default"
    assert first in stack.describe()
    assert second in stack.describe()
    assert same.notes == ()
    assert SpectrumStack.from_dict(stack.to_dict()).describe() == stack.describe()
    with pytest.raises(ValueError, match="'instrumnt'"):
        read_grouped_spectra(chandra, energies="instrumnt")
    with pytest.raises(DataError, match="14 to 195 keV"):
        read_grouped_spectra(files("SWIFT", "BAT"))


def test_the_number_of_flagged_channels_is_said(tmp_path, files):
    path = files("UNKNOWN", "NEW")
    bounds = np.geomspace(0.2, 11.0, NUM_CHANNELS + 1)
    inside = (bounds[:-1] >= 0.5) & (bounds[1:] <= 7.0)
    quality = np.zeros(NUM_CHANNELS, int)
    quality[[0, *np.flatnonzero(inside)[:2]]] = 5, 1, 2  # the first is outside the range of energies
    write_pha(path, small_spectrum(quality=quality), rmf="a.rmf", arf="a.arf", overwrite=True)
    background_quality = np.where(np.arange(NUM_CHANNELS) == np.flatnonzero(inside)[-1], 2, 0)
    write_pha(tmp_path / "background.pha", small_spectrum(seed=3, quality=background_quality))
    options = {"grouping": "none", "background": "none"}

    def described(**changes):
        return read_grouped_spectra(path, **options | changes).describe()

    assert "NEW.pha: 3 channels marked as bad (QUALITY) are not used." in described(energies=None)
    assert "NEW.pha: 2 channels marked as bad" in described(energies=(0.5, 7.0))
    background = str(tmp_path / "background.pha")
    assert "NEW.pha: 3 channels marked as bad" in described(energies=(0.5, 7.0), background=background)
    assert "bad" not in described(energies=None, bad_channels=True)
    assert "bad" not in described(energies=(bounds[5], bounds[8]))


def test_a_published_spectrum_names_its_instrument(shared_data):
    folder = shared_data("xray/swift_bat_862")
    stack = read_grouped_spectra(folder / "bat_index_862.pha", rmf=str(folder / "swiftbat_survey_full_157m.rsp"))
    assert "14 to 195 keV, the default of Swift BAT" in stack.describe()
    assert np.asarray(stack.used).sum() == 8
