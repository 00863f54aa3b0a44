"""Physical constants with the values of astropy, in SI units or in the units of their names."""

import math

speed_of_light = 299792458.0  # m s^-1, exact (SI 2019)
planck_constant = 6.62607015e-34  # J s, exact (SI 2019)
boltzmann_constant = 1.380649e-23  # J K^-1, exact (SI 2019)
electron_volt = 1.602176634e-19  # J, exact (SI 2019)
gravitational_constant = 6.6743e-11  # m^3 kg^-1 s^-2, CODATA 2018 and 2022
astronomical_unit = 149597870700.0  # m, exact (IAU 2012 B2)

parsec = astronomical_unit * 648000.0 / math.pi  # m, IAU 2015 B2
megaparsec = 1e6 * parsec  # m
julian_year = 365.25 * 86400.0  # s, exact (IAU)
gigayear = 1e9 * julian_year  # s

speed_of_light_km_s = speed_of_light / 1e3  # km s^-1, so that c / H0 is in Mpc
hubble_time_gyr = megaparsec / 1e3 / gigayear  # Gyr km s^-1 Mpc^-1; divided by H0 [km/s/Mpc] it is 1/H0 in Gyr
boltzmann_constant_ev = boltzmann_constant / electron_volt  # eV K^-1

# J m^-3 K^-4, exact: 8 pi^5 k^4 / (15 h^3 c^3)
radiation_constant = 8 * math.pi**5 * boltzmann_constant**4 / (15 * (planck_constant * speed_of_light) ** 3)
kev_in_erg = 1e10 * electron_volt  # erg keV^-1, exact
