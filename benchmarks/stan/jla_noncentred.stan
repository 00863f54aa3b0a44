// The same posterior as jla_latents.stan with the latents non-centred: a standard normal number for the true x1, c and
// m_b of every supernova, scaled by its population. See there for the data and the distances.
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
}
transformed data {
  // Inverse Cholesky factors of the noise: w[i, j] .* (residual j), summed over j, is white.
  vector[N] w11;
  vector[N] w21;
  vector[N] w22;
  vector[N] w31;
  vector[N] w32;
  vector[N] w33;
  for (n in 1 : N) {
    matrix[3, 3] w = mdivide_left_tri_low(cholesky_decompose(covariance[n]), identity_matrix(3));
    w11[n] = w[1, 1];
    w21[n] = w[2, 1];
    w22[n] = w[2, 2];
    w31[n] = w[3, 1];
    w32[n] = w[3, 2];
    w33[n] = w[3, 3];
  }
}
parameters {
  real<lower=0, upper=1> Om0;
  real<lower=-3, upper=0> w0;
  real<offset=-19.1, multiplier=0.1> M0;
  real alpha;
  real beta;
  real delta_M;
  real<lower=0> sigma_int;
  real x1_mean;
  real<lower=0> x1_std;
  real c_mean;
  real<lower=0> c_std;
  vector[N] x1_standard;
  vector[N] c_standard;
  vector[N] m_b_standard;
}
model {
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

  x1_standard ~ std_normal();
  c_standard ~ std_normal();
  m_b_standard ~ std_normal();

  vector[N] x1_true = x1_mean + x1_std * x1_standard;
  vector[N] c_true = c_mean + c_std * c_standard;
  vector[N] r1 = x1_true - x1;
  vector[N] r2 = c_true - c;
  vector[N] r3 = M0 + distance_modulus(Om0, w0, u, integral, modulus_of_one) - alpha * x1_true + beta * c_true
                 + delta_M * is_massive + sigma_int * m_b_standard - m_b;
  target += -0.5 * (dot_self(w11 .* r1) + dot_self(w21 .* r1 + w22 .* r2)
                    + dot_self(w31 .* r1 + w32 .* r2 + w33 .* r3));
}
