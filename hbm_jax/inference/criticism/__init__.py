"""Model criticism: log likelihoods on request, prediction of data left out, comparison, sensitivity to priors."""
