// The same posterior as jla_latents.stan in the form in which such programs are published (for example
// github.com/grburgess/supernove_cosmology): the latents declared as they are, without scales, and a quadrature for
// every supernova in a loop. Written anew here, with what is wrong or missing there put right: all 3x3 covariances,
// populations, the host-mass step, both redshifts, and a quadrature of 10 Gauss-Legendre nodes in log(1 + z) in place
// of a trapezoid rule of 11.
functions {
  real distance_modulus(real Om0, real w0, real H0, real z_cmb, real z_hel, vector node, vector weight) {
    real u_max = log1p(z_cmb);
    real integral = 0;
    for (k in 1 : rows(node)) {
      real u = node[k] * u_max;
      integral += weight[k] * inv_sqrt(Om0 * exp(u) + (1 - Om0) * exp((1 + 3 * w0) * u));
    }
    return 5 * log10((1 + z_hel) * 299792.458 / H0 * integral * u_max) + 25;
  }
}
data {
  int<lower=1> N;
  vector[N] x1;
  vector[N] c;
  vector[N] m_b;
  array[N] cov_matrix[3] covariance;  // of (x1, c, m_b): fit, lensing, peculiar velocity
  vector<lower=0, upper=1>[N] is_massive;
  vector<lower=0>[N] z_cmb;
  vector<lower=0>[N] z_hel;
  real<lower=0> H0;
  int<lower=1> num_nodes;
  vector[num_nodes] node;    // on (0, 1)
  vector[num_nodes] weight;
}
transformed data {
  array[N] vector[3] observed;
  array[N] matrix[3, 3] noise;
  for (n in 1 : N) {
    observed[n] = [x1[n], c[n], m_b[n]]';
    noise[n] = cholesky_decompose(covariance[n]);
  }
}
parameters {
  real<lower=0, upper=1> Om0;
  real<lower=-3, upper=0> w0;
  real M0;
  real alpha;
  real beta;
  real delta_M;
  real<lower=0> sigma_int;
  real x1_mean;
  real<lower=0> x1_std;
  real c_mean;
  real<lower=0> c_std;
  vector[N] x1_true;
  vector[N] c_true;
  vector[N] m_b_true;
}
model {
  vector[N] modulus;
  for (n in 1 : N) {
    modulus[n] = distance_modulus(Om0, w0, H0, z_cmb[n], z_hel[n], node, weight);
  }

  // Om0 and w0 are uniform.
  M0 ~ normal(-19.3, 1);
  alpha ~ normal(0, 0.5);
  beta ~ normal(0, 5);
  delta_M ~ normal(0, 0.2);
  sigma_int ~ normal(0, 0.3);
  x1_mean ~ normal(0, 1);
  x1_std ~ normal(0, 2);
  c_mean ~ normal(0, 0.2);
  c_std ~ normal(0, 0.3);

  x1_true ~ normal(x1_mean, x1_std);
  c_true ~ normal(c_mean, c_std);
  m_b_true ~ normal(M0 + modulus - alpha * x1_true + beta * c_true + delta_M * is_massive, sigma_int);
  for (n in 1 : N) {
    observed[n] ~ multi_normal_cholesky([x1_true[n], c_true[n], m_b_true[n]]', noise[n]);
  }
}
