// A population of X-ray afterglows behind host, Milky Way and WHIM, as such programs are written: for every source every
// bin of energy in a loop, every channel of the response, counts added up by group, Poisson counts. The depth of the
// WHIM for a density of 1 is read between temperatures of a table.
data {
  int<lower=1> N;  // sources
  int<lower=1> E;  // bins of energy
  int<lower=1> C;  // channels
  int<lower=1> G;  // groups, of the source with most
  int<lower=1> T;  // temperatures
  vector<lower=0>[E + 1] edge;          // keV
  matrix<lower=0>[C, E] response;       // cm^2
  vector<lower=0>[N] exposure;          // s
  array[N, C] int<lower=0> group;       // of each channel, 0 for none
  array[N] int<lower=1> num_groups;
  array[N, G] int<lower=0> counts;
  vector<lower=0>[N] nh_mw;             // 1e22/cm^2
  array[N] vector<lower=0>[E] galactic; // cross sections at redshift 0, 1e-22 cm^2
  array[N] vector<lower=0>[E] host;     // and in the frame of the host
  array[N] matrix<lower=0>[E, T] whim;
  real low_T;
  real<lower=0> step_T;
  real<lower=0> erg_per_keV;
  vector<lower=0>[2] band;
}
parameters {
  real photon_index_mean;
  real<lower=0> photon_index_std;
  real log10_flux_mean;
  real<lower=0> log10_flux_std;
  real log10_nh_mean;
  real<lower=0> log10_nh_std;
  real log10_n0;
  real<lower=4.5, upper=7.5> log10_T;
  vector[N] photon_index;
  vector[N] log10_flux;
  vector[N] log10_nh;
}
model {
  real n0 = pow(10, log10_n0);
  int cell = 1;
  real t;
  while (cell < T - 1 && low_T + cell * step_T < log10_T) {
    cell += 1;
  }
  t = (log10_T - low_T) / step_T - (cell - 1);

  photon_index_mean ~ normal(2, 0.5);
  photon_index_std ~ normal(0, 0.3);
  log10_flux_mean ~ normal(-11.5, 0.75);
  log10_flux_std ~ normal(0, 0.5);
  log10_nh_mean ~ normal(-0.5, 0.75);
  log10_nh_std ~ normal(0, 0.5);
  log10_n0 ~ normal(-7, 0.5);

  for (n in 1 : N) {
    real a = 1 - photon_index[n];
    real b = 2 - photon_index[n];
    real amplitude = pow(10, log10_flux[n]) / erg_per_keV * b / (pow(band[2], b) - pow(band[1], b));
    vector[E] photons;
    vector[C] in_channel;
    vector[num_groups[n]] expected = rep_vector(0, num_groups[n]);
    photon_index[n] ~ normal(photon_index_mean, photon_index_std);
    log10_flux[n] ~ normal(log10_flux_mean, log10_flux_std);
    log10_nh[n] ~ normal(log10_nh_mean, log10_nh_std);
    for (e in 1 : E) {
      real depth = nh_mw[n] * galactic[n][e] + pow(10, log10_nh[n]) * host[n][e]
                   + n0 * ((1 - t) * whim[n][e, cell] + t * whim[n][e, cell + 1]);
      photons[e] = amplitude * (pow(edge[e + 1], a) - pow(edge[e], a)) / a * exp(-depth);
    }
    in_channel = exposure[n] * (response * photons);
    for (c in 1 : C) {
      if (group[n, c] > 0) {
        expected[group[n, c]] += in_channel[c];
      }
    }
    for (g in 1 : num_groups[n]) {
      counts[n, g] ~ poisson(expected[g]);
    }
  }
}
