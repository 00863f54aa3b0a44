// The same posterior as jla_latents.stan with the latents integrated out: eleven parameters, and for every supernova a
// Gaussian in (x1, c, m_b) whose 3x3 covariance is factorised in closed form (L D L^T), vectorised over supernovae.
//
// straighten = 1 samples w0 in the coordinate of hbm_jax.models.background, in which its ridge with Om0 is straight;
// straighten = 0 in the one that Stan gives to real<lower=-3, upper=0>. The posterior is the same.
functions {
  vector distance_modulus(real Om0, real w0, vector u, matrix integral, vector modulus_of_one) {
    // The integrand of the comoving distance in u is e^u / E(u), simplified.
    vector[rows(u)] integrand = inv_sqrt(Om0 * exp(u) + (1 - Om0) * exp((1 + 3 * w0) * u));
    return modulus_of_one + (5 / log10()) * log(integral * integrand);
  }
}
data {
  int<lower=1> N;
  int<lower=1> K;
  vector[N] x1;
  vector[N] c;
  vector[N] m_b;
  array[N] cov_matrix[3] covariance;  // of (x1, c, m_b): fit, lensing, peculiar velocity
  vector<lower=0, upper=1>[N] is_massive;
  vector[K] u;                        // nodes
  matrix[N, K] integral;              // from the integrand at the nodes to distance in units of c / H0
  vector[N] modulus_of_one;           // distance modulus for an integral of one, with 1 + z_hel
  int<lower=0, upper=1> straighten;
}
transformed data {
  vector[N] n11;
  vector[N] n21;
  vector[N] n22;
  vector[N] n31;
  vector[N] n32;
  vector[N] n33;
  for (n in 1 : N) {
    n11[n] = covariance[n][1, 1];
    n21[n] = covariance[n][2, 1];
    n22[n] = covariance[n][2, 2];
    n31[n] = covariance[n][3, 1];
    n32[n] = covariance[n][3, 2];
    n33[n] = covariance[n][3, 3];
  }
}
parameters {
  real<lower=0, upper=1> Om0;
  real w0_coordinate;
  real<offset=-19.1, multiplier=0.1> M0;
  real alpha;
  real beta;
  real delta_M;
  real<lower=0> sigma_int;
  real x1_mean;
  real<lower=0> x1_std;
  real c_mean;
  real<lower=0> c_std;
}
transformed parameters {
  // Where the ridge is, by a tangent at w0 = -1: the derivative of the logistic map to (-3, 0) is 2/3 there.
  real position = w0_coordinate + straighten * (logit(2.0 / 3) + 1.5 * (1 - 0.55 - 1.6 * Om0 ^ 1.5));
  real w0 = -3 + 3 * inv_logit(position);
}
model {
  // Om0 and w0 are uniform; the Jacobian of coordinate -> w0 is that of the logistic map.
  target += log_inv_logit(position) + log1m_inv_logit(position);
  M0 ~ normal(-19.3, 1);
  alpha ~ normal(0, 0.5);
  beta ~ normal(0, 5);
  delta_M ~ normal(0, 0.2);
  sigma_int ~ normal(0, 0.3);
  x1_mean ~ normal(0, 1);
  x1_std ~ normal(0, 2);
  c_mean ~ normal(0, 0.2);
  c_std ~ normal(0, 0.3);

  real x1_variance = square(x1_std);
  real c_variance = square(c_std);
  vector[N] p1 = n11 + x1_variance;
  vector[N] l21 = n21 ./ p1;
  vector[N] p2 = n22 + c_variance - l21 .* n21;
  vector[N] s31 = n31 - alpha * x1_variance;
  vector[N] l31 = s31 ./ p1;
  vector[N] s32 = n32 + beta * c_variance - l31 .* n21;
  vector[N] l32 = s32 ./ p2;
  vector[N] p3 = n33 + (square(alpha) * x1_variance + square(beta) * c_variance + square(sigma_int)) - l31 .* s31
                 - l32 .* s32;

  vector[N] r1 = x1 - x1_mean;
  vector[N] r2 = c - c_mean - l21 .* r1;
  vector[N] r3 = m_b - (M0 - alpha * x1_mean + beta * c_mean) - delta_M * is_massive
                 - distance_modulus(Om0, w0, u, integral, modulus_of_one) - l31 .* r1 - l32 .* r2;
  target += -0.5 * (dot_product(r1, r1 ./ p1) + dot_product(r2, r2 ./ p2) + dot_product(r3, r3 ./ p3)
                    + sum(log(p1 .* p2 .* p3)));
}
