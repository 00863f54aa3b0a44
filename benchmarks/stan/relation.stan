// The posterior of hbm_jax.models.Relation (partial pooling) with its latents as parameters, vectorised.
data {
  int<lower=1> J;
  int<lower=1> n;
  array[n] int<lower=1, upper=J> group;
  vector[n] x_obs;          // less the pivot
  vector[n] y_obs;
  vector[n] sigma_x;
  vector[n] sigma_y;
  int<lower=0, upper=1> centred;
}
parameters {
  real alpha_mean;
  real<lower=0> alpha_std;
  real beta_mean;
  real<lower=0> beta_std;
  real<lower=0> intrinsic_scatter;
  real x_mean;
  real<lower=0> x_std;
  vector[J] alpha_free;
  vector[J] beta_free;
  vector[n] x_free;
}
transformed parameters {
  vector[J] alpha = centred ? alpha_free : alpha_mean + alpha_std * alpha_free;
  vector[J] beta = centred ? beta_free : beta_mean + beta_std * beta_free;
  vector[n] x = centred ? x_free : x_mean + x_std * x_free;
}
model {
  alpha_mean ~ normal(0, 3);
  alpha_std ~ normal(0, 1.5);
  beta_mean ~ normal(0, 3);
  beta_std ~ normal(0, 1.5);
  intrinsic_scatter ~ normal(0, 1);
  x_mean ~ normal(0, 2);
  x_std ~ normal(0, 2);
  if (centred) {
    alpha_free ~ normal(alpha_mean, alpha_std);
    beta_free ~ normal(beta_mean, beta_std);
    x_free ~ normal(x_mean, x_std);
  } else {
    alpha_free ~ std_normal();
    beta_free ~ std_normal();
    x_free ~ std_normal();
  }
  x_obs ~ normal(x, sigma_x);
  y_obs ~ normal(alpha[group] .* x + beta[group], sqrt(square(sigma_y) + square(intrinsic_scatter)));
}
