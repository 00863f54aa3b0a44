// afterglow_expert.stan with the sources non-centred.
// The posterior of hbm_jax.models.Afterglow(whim=True), vectorised: channels grouped and responses multiplied by the
// exposure beforehand, one vectorised Poisson statement per source.
data {
  int<lower=1> N;  // sources
  int<lower=1> E;  // bins of energy
  int<lower=1> G;  // groups, of the source with most
  int<lower=1> T;  // temperatures
  vector<lower=0>[E + 1] edge;                 // keV
  array[N] matrix<lower=0>[G, E] grouped;      // cm^2 s
  array[N] int<lower=1> num_groups;
  array[N, G] int<lower=0> counts;
  vector<lower=0>[N] nh_mw;                    // 1e22/cm^2
  array[N] vector<lower=0>[E] galactic;        // cross sections at redshift 0, 1e-22 cm^2
  array[N] vector<lower=0>[E] host;            // and in the frame of the host
  array[N] matrix<lower=0>[E, T] whim;
  real low_T;
  real<lower=0> step_T;
  real<lower=0> erg_per_keV;
  vector<lower=0>[2] band;
}
transformed data {
  vector[E] middle = 0.5 * (log(head(edge, E)) + log(tail(edge, E)));
  vector[E] half = 0.5 * (log(tail(edge, E)) - log(head(edge, E)));
  array[N] vector[E] known;
  array[N] matrix[G, E] by_width;
  for (n in 1 : N) {
    known[n] = nh_mw[n] * galactic[n];
    by_width[n] = grouped[n] .* rep_matrix(2 * half', G);
  }
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
  vector[N] photon_index_free;
  vector[N] log10_flux_free;
  vector[N] log10_nh_free;
}
transformed parameters {
  vector[N] photon_index = photon_index_mean + photon_index_std * photon_index_free;
  vector[N] log10_flux = log10_flux_mean + log10_flux_std * log10_flux_free;
  vector[N] log10_nh = log10_nh_mean + log10_nh_std * log10_nh_free;
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
  photon_index_free ~ std_normal();
  log10_flux_free ~ std_normal();
  log10_nh_free ~ std_normal();

  for (n in 1 : N) {
    real a = 1 - photon_index[n];
    real b = 2 - photon_index[n];
    real log_amplitude = log(10) * log10_flux[n] + log(b / (pow(band[2], b) - pow(band[1], b)) / erg_per_keV);
    // The integral over a bin is its width in ln E times E^a times sinh(x) / x, which is 1 + x^2/6 for such bins.
    vector[E] photons = exp(log_amplitude + a * middle + square(a * half) / 6 - known[n]
                            - pow(10, log10_nh[n]) * host[n]
                            - (n0 * (1 - t)) * col(whim[n], cell) - (n0 * t) * col(whim[n], cell + 1));
    counts[n, 1 : num_groups[n]] ~ poisson(head(by_width[n] * photons, num_groups[n]));
  }
}
