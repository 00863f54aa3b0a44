// The posterior of hbm_jax.models.Golenetskii with its latents as parameters, vectorised.
// x is log10 of the peak energy in the burst's frame over 100 keV. Flags choose the form of the latents.
data {
  int<lower=1> B;
  int<lower=1> n;
  array[n] int<lower=1, upper=B> burst;
  vector[n] x_obs;          // measured, moved to the burst's frame
  vector[n] y_obs;          // measured log10 flux + log10 (4 pi d_L^2) - 52
  vector[n] var_x;
  vector[n] cov_xy;
  vector[n] var_y;
  int<lower=0, upper=1> centred_peaks;
  int<lower=0, upper=1> centred_bursts;
  int<lower=0, upper=1> sampled_fluxes;  // centred where the peaks are; else integrated out
}
transformed data {
  vector[n] slope_error = cov_xy ./ var_x;             // of the error of y on that of x
  vector[n] left_error = var_y - cov_xy .* slope_error;
  vector[n] sigma_x = sqrt(var_x);
}
parameters {
  real gamma_mean;
  real<lower=0> gamma_std;
  real log10_N_mean;        // less 52
  real<lower=0> log10_N_std;
  real log10_E_peak_mean;
  real<lower=0> log10_E_peak_std;
  real<lower=0> log10_E_peak_scatter;
  real<lower=0> intrinsic_scatter;
  vector[B] gamma_free;
  vector[B] line_free;
  vector[B] middle_free;
  vector[n] x_free;
  vector[sampled_fluxes ? n : 0] y_free;
}
transformed parameters {
  vector[B] gamma = centred_bursts ? gamma_free : gamma_mean + gamma_std * gamma_free;
  vector[B] line = centred_bursts ? line_free : log10_N_mean + log10_N_std * line_free;
  vector[B] middle = centred_bursts ? middle_free : log10_E_peak_mean - 2 + log10_E_peak_std * middle_free;
  vector[n] x = centred_peaks ? x_free : middle[burst] + log10_E_peak_scatter * x_free;
}
model {
  gamma_mean ~ normal(1.5, 0.5);
  gamma_std ~ normal(0, 0.5);
  log10_N_mean ~ normal(0, 1);
  log10_N_std ~ normal(0, 1);
  log10_E_peak_mean ~ normal(2.6, 0.5);
  log10_E_peak_std ~ normal(0, 0.5);
  log10_E_peak_scatter ~ normal(0, 0.5);
  intrinsic_scatter ~ normal(0, 0.3);
  if (centred_bursts) {
    gamma_free ~ normal(gamma_mean, gamma_std);
    line_free ~ normal(log10_N_mean, log10_N_std);
    middle_free ~ normal(log10_E_peak_mean - 2, log10_E_peak_std);
  } else {
    gamma_free ~ std_normal();
    line_free ~ std_normal();
    middle_free ~ std_normal();
  }
  if (centred_peaks) x_free ~ normal(middle[burst], log10_E_peak_scatter);
  else x_free ~ std_normal();
  x_obs ~ normal(x, sigma_x);
  vector[n] expected = line[burst] + gamma[burst] .* x;
  if (sampled_fluxes) {
    vector[n] y = centred_peaks ? y_free : expected + intrinsic_scatter * y_free;
    if (centred_peaks) y_free ~ normal(expected, intrinsic_scatter);
    else y_free ~ std_normal();
    y_obs ~ normal(y + slope_error .* (x_obs - x), sqrt(left_error));
  } else {
    // The true y is integrated out: its scatter adds to the error that is left when that of x is known.
    y_obs ~ normal(expected + slope_error .* (x_obs - x), sqrt(left_error + square(intrinsic_scatter)));
  }
}
