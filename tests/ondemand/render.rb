# frozen_string_literal: true

# Renders templates of the app as the dashboard does.  Standard input: a JSON list of what to render, with `file`,
# `kind`, `context`, `staged_root` and `etc`; standard output: a JSON list of what came out, each with `text` or `error`.

require 'erb'
require 'json'
require 'ostruct'

Template = Struct.new(:session, :context) { def scope = binding }
Card = Struct.new(:staged_root) { def scope = binding }

def rendered(asked)
  ENV['OOD_APP_CONFIG_ROOT'] = "#{asked.fetch('etc', '/nowhere')}/apps/dashboard"
  given = OpenStruct.new(asked['context'])
  scope =
    case asked['kind']
    when 'form' then Object.new.instance_eval { binding }
    when 'submit', 'view' then given.instance_eval { binding }
    when 'template' then Template.new(nil, given).scope
    when 'card' then Card.new(asked['staged_root']).scope
    end
  erb = ERB.new(File.read(asked['file']), trim_mode: '-')
  erb.filename = asked['file']
  { text: erb.result(scope) }
rescue StandardError, SyntaxError => e
  { error: "#{e.class}: #{e.message}" }
end

$stdout.write(JSON.generate(JSON.parse($stdin.read).map { |one| rendered(one) }))
