// The posterior of hbm_jax.models.Normal with the groups' true values as parameters, vectorised.
data {
  int<lower=1> J;
  vector[J] y;
  vector<lower=0>[J] sigma;
  int<lower=0, upper=1> centred;
}
parameters {
  real mu;
  real<lower=0> tau;
  vector[J] free;
}
model {
  mu ~ normal(0, 5);
  tau ~ normal(0, 5);
  if (centred) {
    free ~ normal(mu, tau);
    y ~ normal(free, sigma);
  } else {
    free ~ std_normal();
    y ~ normal(mu + tau * free, sigma);
  }
}
