output "hosts" {
  description = "The machines: name, address, account, groups, Nova's id, and the volume of the data (empty: none)."
  value       = local.hosts
}

output "hosts_yml" {
  description = "inventory/<lab>/hosts.yml, as playbooks/provision.yml writes it."
  value = templatefile("${path.module}/templates/hosts.yml.tftpl", {
    hosts   = local.hosts
    private = "private/${local.name}"
    own_key = local.lab.own_key
    project = data.openstack_identity_auth_scope_v3.login.project_id
    made_by = "Terraform"
  })
}

output "port_id" {
  description = "The server's port: attached again where somebody has deleted the one before."
  value       = module.server.port_id
}

output "bucket" {
  description = "The bucket of artifacts."
  value       = module.bucket.name
}

output "s3_endpoint" {
  description = "Where S3 answers."
  value       = local.lab.lab_s3_endpoint
}

output "url" {
  description = "Where the lab's server will answer."
  value       = "https://${local.lab.lab_fqdn}"
}
